import sys

import pytest

from atoll import launch
from atoll.errors import UserError
from atoll.workers import zygote_runtime


def test_a_script_without_a_guard_cannot_start_runs_from_inside_a_trainer(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    zygote_runtime._be_nobody()
    with pytest.raises(UserError, match="while a trainer loaded the script"):
        launch.run(workers=2)
