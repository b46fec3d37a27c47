import subprocess
import sys

from atoll.checkpoint.commit import Commit
from atoll.checkpoint.fs_rehearsal import rehearse

AFTER = """
import sys
from checkpoint_crews import Crew
from atoll.checkpoint.torch_state import flatten
import torch
crew = Crew(2, directory=__import__("pathlib").Path(sys.argv[1]))
assert crew.writers[0].rehearsed.wait(60)
before = set(sys.modules)
crew.save_and_wait(flatten({"model": {"w": torch.ones(9, 3)}, "n": 1}), 1)
crew.finish()
print(sorted(set(sys.modules) - before))
"""


def test_rehearsal_goes_the_whole_way_to_a_record():
    assert isinstance(rehearse(), Commit)


def test_first_save_loads_no_module_that_the_rehearsal_did_not(tmp_path):
    crews = next(path for path in sys.path if path.endswith("support"))
    code = f"import sys; sys.path[:0] = [{crews!r}, {sys.path[0]!r}]\n{AFTER}"
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
