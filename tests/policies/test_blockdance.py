from dataclasses import replace

import pytest
import torch
from toys import Loop, SmoothDiT, letters, run_scripted, run_smooth, tiny_transformer, toy_session

import fsframework.models  # noqa: F401  fills the registry
from fsframework.core import ADAPTERS, ReuseEngine, ReuseWarning
from fsframework.policies import ForecastReuse
from fsframework.policies.blockdance import BlockDance


def test_groups_of_two_start_at_forty_percent_and_end_at_ninety_five():
    session, model, out = run_scripted(BlockDance(blocks=2), lambda b, t: 100 * b + t, 20, num_blocks=3)
    expected = "CCCCCCCCCRCRCRCRCRCC"  # the window is steps 8 to 18
    assert letters(session) == {"joint.0": expected, "joint.1": expected, "joint.2": "C" * 20}
    assert out == [200 + s for s in range(20)]  # the last block always runs
    assert [block.num_runs for block in model.transformer_blocks] == [15, 15, 20]


def test_a_group_starts_from_the_output_that_its_first_step_stored():
    model = SmoothDiT(num_blocks=3)
    with toy_session(model, BlockDance(interval=3, blocks=1, window_start=0, window_stop=3), 4) as session:
        out = run_smooth(model, 4)
    assert session.trace.decisions("joint.0") == "CRRC"
    first, second, third = model.transformer_blocks
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        stored = first(x, torch.zeros(1))
        for s in (1, 2):
            t = torch.full((1,), float(s))
            assert torch.allclose(out[s], third(second(stored, t), t), atol=1e-6)


def test_the_text_stream_is_restored_with_the_video():
    """In CogVideoX a block changes the text too; the blocks after i must see the text of the stored step."""
    adapter = ADAPTERS["cogvideox"]()
    model = tiny_transformer(adapter)
    loop = Loop(adapter, model)
    seen = {}

    def watch(_, args, kwargs):
        seen.setdefault(len(seen), kwargs["encoder_hidden_states"].clone())

    hook = model.transformer_blocks[2].register_forward_pre_hook(watch, with_kwargs=True)
    policy = BlockDance(blocks=2, window_start=0, window_stop=4)
    with ReuseEngine(adapter.bind(model), policy, scheduler=lambda: loop.scheduler) as session:
        loop(num_steps=4)
    hook.remove()
    assert session.trace.decisions("joint.1") == "CRCR"
    assert torch.equal(seen[1], seen[0])
    assert torch.equal(seen[3], seen[2])
    assert not torch.equal(seen[2], seen[0])


@pytest.mark.parametrize(("blocks", "count"), [(20 / 28, 3), (0.5, 2), (0.1, 1), (1.0, 4), (3, 3)])
def test_the_depth_is_a_fraction_of_the_blocks_or_their_number(blocks, count):
    policy = BlockDance(blocks=blocks, window_start=0, window_stop=2)
    session, _, _ = run_scripted(policy, lambda b, t: t, 2, num_blocks=4)
    assert [letters(session)[f"joint.{i}"] for i in range(4)] == ["CR"] * count + ["CC"] * (4 - count)


def test_twenty_of_twenty_eight_blocks_is_the_default():
    session, _, _ = run_scripted(BlockDance(window_start=0), lambda b, t: t, 2, num_blocks=28)
    assert list(letters(session).values()) == ["CR"] * 20 + ["CC"] * 8


def test_one_hidden_state_is_cached():
    session, _, _ = run_scripted(BlockDance(), lambda b, t: t, 10, num_blocks=6)
    assert session.cache.peak_bytes == 4 * 2 * 4
    session, _, _ = run_scripted(BlockDance(interval=1), lambda b, t: t, 10, num_blocks=6)
    assert session.cache.peak_bytes == 0
    assert set(session.trace.column("decision")) == {"recompute"}


def test_after_the_shapes_changed_all_blocks_run_once_and_the_next_step_jumps_again():
    """Steps 2 and 6 keep block 1; at step 4, which would jump, the latent has more tokens and nothing that is cached fits."""
    model, policy = SmoothDiT(num_blocks=3), BlockDance(interval=4, blocks=2, window_start=2, window_stop=9)
    with (
        pytest.warns(ReuseWarning, match="changed their shapes at step 4"),
        toy_session(model, policy, 9) as session,
        torch.no_grad(),
    ):
        for s in range(9):
            model(torch.ones(1, 6 if s < 4 else 7, 8), torch.full((1,), float(s)))
    assert letters(session) == {"joint.0": "CCCRCRCRR", "joint.1": "CCCRCRCRR", "joint.2": "C" * 9}
    assert not any(session.trace.forced)
    assert session.cache.peak_counts()["joint"] == (1, 0)
    assert policy.num_cached(session._last.runs["joint"]) == 1


def test_under_a_forecast_the_two_newest_outputs_are_kept():
    """Outputs are the step's number, so a line through two of them is exact, from the first jump at step 3 on."""
    policy = BlockDance(blocks=1.0, window_start=2, window_stop=1.0)
    session, _, out = run_scripted(ForecastReuse(policy), lambda b, t: t, 8)
    assert letters(session) == {"joint.0": "CCCFCFCF"}
    assert out == list(range(8))
    assert session.cache.peak_counts()["joint"] == (2, 0)
    run = session._last.runs["joint"]
    assert policy.num_cached(replace(run, depth=2)) == 2


def test_two_videos_in_one_session_equal_each_alone():
    alone = []
    for seed in (1, 2):
        model = SmoothDiT()
        with toy_session(model, BlockDance(), 8):
            alone.append(torch.stack(run_smooth(model, 8, seed=seed)))
    model = SmoothDiT()
    with toy_session(model, BlockDance(), 8):
        together = [torch.stack(run_smooth(model, 8, seed=seed)) for seed in (1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0 must be at least 1"),
        ({"blocks": 0}, "blocks=0 must be a fraction"),
        ({"blocks": 1.5}, "blocks=1.5"),
        ({"window_start": -0.1}, "window_start=-0.1 must be a fraction"),
        ({"window_stop": 1.2}, "window_stop=1.2"),
        ({"window_start": 0.9, "window_stop": 0.4}, "window_start=0.9 must be below window_stop=0.4"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        BlockDance(**options)


@pytest.mark.parametrize(("start", "stop"), [(0.5, 3), (0.5, 5), (9, 0.9)])
def test_a_window_of_a_fraction_and_a_number_is_checked_when_the_steps_are_known(start, stop):
    policy = BlockDance(window_start=start, window_stop=stop)
    with pytest.raises(ValueError, match=rf"window_start={start} is step .* must be below window_stop={stop}, step "):
        run_scripted(policy, lambda b, t: t, 10)
    session, _, _ = run_scripted(BlockDance(window_start=0.5, window_stop=8), lambda b, t: t, 10, num_blocks=2)
    assert letters(session)["joint.0"] == "CCCCCCRCCC"


def test_a_model_of_fewer_blocks_is_an_error():
    with pytest.raises(ValueError, match="blocks=9, but this model has 4 blocks"):
        run_scripted(BlockDance(blocks=9), lambda b, t: t, 4, num_blocks=4)
