"""What `Engine` promises, held on the builtin engine over small transformers and on a fake without tensors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atoll.errors import CheckpointError, NonFiniteError, SpecError
from atoll.workers.engine import Finish, Output, Request, Sampling
from atoll.workers.engine_core import Scheduler
from atoll.workers.torch_sampling import choose
from atoll.workers.torch_serving import TorchEngine

CONTEXT, VOCAB, WIDTH, HEADS = 40, 23, 16, 4
PROMPTS = {"a": (3,), "b": (1, 2, 3, 4, 5, 6, 7), "c": tuple(range(19)), "d": (9, 9), "e": (4, 1, 4, 1, 4)}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These matrices are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tiny(nn.Module):
    """Two layers of attention, whose logits change with every earlier token and its place."""

    context = CONTEXT

    def __init__(self, kv_heads=HEADS):
        super().__init__()
        torch.manual_seed(5)
        self.kv_heads, self.size = kv_heads, WIDTH // HEADS
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.q = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.kv = nn.ModuleList(nn.Linear(WIDTH, 2 * kv_heads * self.size) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens, cache=None):
        positions = cache.positions if cache else torch.arange(tokens.shape[1])[None]
        x = self.tokens(tokens) + self.places(positions)
        for layer in range(2):
            q = self.q[layer](x).unflatten(-1, (HEADS, self.size)).transpose(1, 2)
            k, v = self.kv[layer](x).unflatten(-1, (2, self.kv_heads, self.size)).permute(2, 0, 3, 1, 4)
            if cache:
                y = cache.attend(layer, 3 * q, k, v)
            else:
                y = F.scaled_dot_product_attention(3 * q, k, v, is_causal=True, enable_gqa=self.kv_heads != HEADS)
            x = x + y.transpose(1, 2).flatten(2)
        return self.head(x)


class FakeEngine:
    """`Engine` whose logits are arithmetic of all earlier tokens."""

    def __init__(self, *, slots=16, budget=256):
        self.context, self.vocab = CONTEXT, VOCAB
        self.salt = torch.ones(2)
        self._paused = False
        self._scheduler = Scheduler(slots=slots, context=CONTEXT, budget=max(budget, slots), vocab=VOCAB)
        self._seen = {}

    @property
    def busy(self):
        return self._scheduler.busy and not self._paused

    def add(self, request):
        self._scheduler.add(request)
        self._seen[request.id] = []

    def abort(self, request):
        gone = self._scheduler.abort(request)
        return [Output(request=request, token=None, finish=Finish.ABORT)] if gone else []

    def pause(self, *, paused):
        self._paused = paused

    def load(self, weights):
        if weights.keys() != {"salt"} or weights["salt"].shape != (2,):
            raise CheckpointError(f"the checkpoint has {sorted(weights)}, not a salt of two numbers")
        self.salt = weights["salt"]

    def step(self):
        if self._paused:
            return []
        batch, outputs = self._scheduler.plan(), []
        for chunk in (*batch.decode, *batch.prefill):
            self._seen[chunk.request] += chunk.tokens
            self._scheduler.computed([chunk])
            if chunk.last:
                wanted, place = self._scheduler.sampling_of(chunk.request)
                token = choose(self.logits(self._seen[chunk.request]), wanted.sampling, place)
                outputs.append(
                    Output(request=chunk.request, token=token, finish=self._scheduler.emit(chunk.request, token))
                )
        return outputs

    def logits(self, tokens):
        total = sum((i + 1) * (t + 1) for i, t in enumerate(tokens)) + float(self.salt.sum())
        return torch.sin(torch.arange(VOCAB) * (total % 97 + 1))


class Kind:
    """One kind of engine: how to make it, the logits without a cache, and weights that fit."""

    def __init__(self, name):
        self.name = name
        self.model = None if name == "fake" else Tiny(kv_heads=2 if name == "grouped" else HEADS).eval()

    def make(self, **options):
        return FakeEngine(**options) if self.model is None else TorchEngine(self.model, **options)

    @torch.inference_mode()
    def logits(self, tokens):
        return FakeEngine().logits(tokens) if self.model is None else self.model(torch.tensor([tokens]))[0, -1]

    def weights(self):
        if self.model is None:
            return {"salt": torch.zeros(2)}
        return {n: torch.flip(t, [0]) for n, t in self.model.state_dict().items()}


@pytest.fixture(params=["fake", "torch", "grouped"])
def kind(request):
    return Kind(request.param)


def request(name, most=8, prompt=None, **sampling):
    return Request(
        id=name, prompt=prompt or PROMPTS[name], sampling=Sampling(**{"max_tokens": most, "temperature": 0, **sampling})
    )


def run(engine, *requests, arrive_every=0):
    """Tokens and reason of each request; they arrive `arrive_every` steps apart."""
    tokens, ends, waiting = {r.id: [] for r in requests}, {}, list(requests)
    for step in range(500):
        while waiting and (not arrive_every or step % arrive_every == 0):
            engine.add(waiting.pop(0))
            if arrive_every:
                break
        if not waiting and not engine.busy:
            return tokens, ends
        for output in engine.step():
            assert output.request not in ends, "an output after the last"
            tokens[output.request].append(output.token)
            if output.finish is not None:
                ends[output.request] = output.finish
    raise AssertionError(f"requests do not end: {tokens}")


def recomputed(kind, wanted):
    """The tokens by a full forward for each, without a cache."""
    tokens = list(wanted.prompt)
    for _ in range(wanted.sampling.max_tokens):
        tokens.append(choose(kind.logits(tokens), wanted.sampling, len(tokens)))
    return tokens[len(wanted.prompt) :]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 11, "top_k": 9, "top_p": 0.9}])
@pytest.mark.parametrize(
    ("options", "arrive_every"),
    [({}, 0), ({"slots": 2}, 0), ({"slots": 3, "budget": 3}, 0), ({"slots": 4, "budget": 5}, 2)],
)
def test_tokens_are_the_same_alone_batched_chunked_and_without_a_cache(kind, sampling, options, arrive_every):
    wanted = [request(name, **sampling) for name in PROMPTS]
    expected = {r.id: recomputed(kind, r) for r in wanted}
    assert len({tuple(t) for t in expected.values()}) == len(wanted)
    tokens, ends = run(kind.make(**options), *wanted, arrive_every=arrive_every)
    assert tokens == expected
    assert set(ends.values()) == {Finish.LENGTH}
    assert run(kind.make(**options), wanted[1])[0] == {"b": expected["b"]}


def test_seeded_choice_does_not_depend_on_neighbours_or_their_seeds(kind):
    one = request("b", temperature=1.5, seed=3)
    alone = run(kind.make(), one)[0]["b"]
    for seed in (3, 4):
        others = [request(n, temperature=1.5, seed=seed) for n in "acd"]
        assert run(kind.make(slots=3), *others, one, arrive_every=1)[0]["b"] == alone
    assert run(kind.make(), request("b", temperature=1.5, seed=4))[0]["b"] != alone


def test_slot_used_again_shows_nothing_of_its_last_owner(kind):
    engine = kind.make(slots=1)
    run(engine, request("c"))
    assert run(engine, request("b"))[0]["b"] == recomputed(kind, request("b"))


def test_context_full_ends_with_length(kind):
    tokens, ends = run(kind.make(), request("b", most=1000))
    assert len(PROMPTS["b"]) + len(tokens["b"]) == CONTEXT
    assert ends["b"] is Finish.LENGTH
    assert len(run(kind.make(), request("x", prompt=(1,) * (CONTEXT - 1), most=5))[0]["x"]) == 1


def test_stop_token_ends_with_stop(kind):
    expected = recomputed(kind, request("b"))
    tokens, ends = run(kind.make(), request("b", stop_tokens=frozenset({expected[3]})))
    assert tokens["b"] == expected[: expected.index(expected[3]) + 1]
    assert ends["b"] is Finish.STOP


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_abort_says_so_once_and_frees_the_slot_for_the_next(kind, steps):
    engine = kind.make(slots=1, budget=4)
    engine.add(request("c"))
    for _ in range(steps):
        engine.step()
    assert engine.abort("c") == [Output(request="c", token=None, finish=Finish.ABORT)]
    assert engine.abort("c") == []
    assert not engine.busy
    assert run(engine, request("b"))[0]["b"] == recomputed(kind, request("b"))


def test_abort_of_one_leaves_the_tokens_of_the_others(kind):
    engine = kind.make(slots=3)
    for name in "bcd":
        engine.add(request(name))
    got = [o for _ in range(3) for o in engine.step()]
    engine.abort("c")
    while engine.busy:
        got += engine.step()
    for name in "bd":
        assert [o.token for o in got if o.request == name] == recomputed(kind, request(name))


@pytest.mark.parametrize("prompt", [(1,) * CONTEXT, (VOCAB,), (-1,), (1 << 70,)])
def test_prompt_that_can_never_run_is_refused_and_the_engine_goes_on(kind, prompt):
    engine = kind.make()
    with pytest.raises(SpecError, match="prompt"):
        engine.add(request("x", prompt=prompt))
    assert not engine.busy
    assert run(engine, request("b"))[0]["b"] == recomputed(kind, request("b"))


def test_paused_engine_is_not_busy_computes_nothing_and_goes_on_where_it_was(kind):
    engine = kind.make()
    engine.add(request("b"))
    got = engine.step()
    engine.pause(paused=True)
    assert not engine.busy
    assert engine.step() == []
    engine.add(request("d"))
    engine.pause(paused=False)
    while engine.busy:
        got += engine.step()
    assert [o.token for o in got if o.request == "b"] == recomputed(kind, request("b"))
    assert [o.token for o in got if o.request == "d"] == recomputed(kind, request("d"))


def test_step_with_nothing_to_do_is_empty(kind):
    assert kind.make().step() == []


def test_loaded_weights_count_from_the_next_step(kind):
    engine, weights = kind.make(), kind.weights()
    before = run(engine, request("b", most=20))[0]["b"]
    engine.load(weights)
    after = run(engine, request("b", most=20))[0]["b"]
    assert after != before
    if kind.model is not None:
        assert after == recomputed(kind, request("b", most=20))


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(kind):
    engine = kind.make()
    expected = run(engine, request("b"))[0]
    with pytest.raises(CheckpointError, match="the checkpoint"):
        engine.load({**kind.weights(), "stranger": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="the checkpoint"):
        engine.load({})
    assert run(engine, request("b"))[0] == expected


def test_builtin_engine_names_missing_unknown_and_misshapen_weights():
    weights = Kind("torch").weights()
    del weights["head.bias"], weights["head.weight"]
    weights |= {"places.weight": torch.zeros(2), "new": torch.zeros(1)}
    with pytest.raises(
        CheckpointError,
        match=r"missing head\.bias, head\.weight, unknown new, of another shape places\.weight",
    ):
        Kind("torch").make().load(weights)


def test_many_misfits_are_counted_and_not_all_listed():
    with pytest.raises(CheckpointError, match=r"missing head\.bias, head\.weight, kv\.0\.bias and 9 more"):
        Kind("torch").make().load({})


@pytest.mark.parametrize("context", [None, 1, "8"])
def test_model_without_a_context_is_refused(context):
    model = Tiny()
    model.context = context
    with pytest.raises(SpecError, match=r"Tiny\.context is"):
        TorchEngine(model)


def test_model_whose_logits_have_another_shape_is_refused():
    class Flat(Tiny):
        def forward(self, tokens, cache=None):
            return super().forward(tokens, cache)[:, -1]

    with pytest.raises(SpecError, match=r"Flat made logits of shape \(1, 23\) from one token"):
        TorchEngine(Flat())


def test_nan_of_one_request_ends_it_alone_and_does_not_stay_in_its_slot():
    kind = Kind("torch")
    with torch.no_grad():
        kind.model.tokens.weight[20] = float("nan")
    engine = kind.make(slots=2)
    engine.add(request("bad", prompt=(1, 20, 2, 3, 4, 5, 6, 7, 8)))
    engine.add(request("b"))
    got = engine.step()
    [bad] = [o for o in got if o.request == "bad"]
    assert (bad.token, bad.finish) == (None, Finish.ABORT)
    assert isinstance(bad.error, NonFiniteError)
    # In the bad one's slot now, shorter than it, beside one that is longer.
    engine.add(request("a"))
    while engine.busy:
        got += engine.step()
    for name in "ab":
        assert [o.token for o in got if o.request == name] == recomputed(kind, request(name))


def test_step_that_raises_leaves_an_engine_that_can_be_emptied_and_goes_on():
    kind = Kind("torch")
    engine, forward = kind.make(), kind.model.forward
    for name in "bd":
        engine.add(request(name))
    engine.step()
    kind.model.forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.step()
    kind.model.forward = forward
    assert [o.finish for name in "bd" for o in engine.abort(name)] == [Finish.ABORT] * 2
    assert run(engine, request("b"))[0]["b"] == recomputed(kind, request("b"))
