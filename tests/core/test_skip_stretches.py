"""Tokens of long clips scored a stretch of frames at a time: the same scores, no more memory."""

import pytest
import torch
from surf.surf_core.skip import MaskPredictor, PredictorConfig, detail, token_scores
from surf.surf_core.skip.predict import STRETCH
from surf.surf_core.training.live_bytes import LiveBytes


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved_predictor():
    """A predictor whose convolution over time and head are not zero, as after training."""
    model = MaskPredictor(PredictorConfig())
    model.initialise(torch.Generator().manual_seed(4))
    for seed, module in enumerate((model.time, model.head)):
        module.weight.data = 0.5 * random(*module.weight.shape, seed=seed)
    return model.eval()


@pytest.mark.parametrize("frames", [1, 2, STRETCH - 1, STRETCH, STRETCH + 1, 2 * STRETCH, 41])
@pytest.mark.parametrize(
    ("patch", "trained"), [((1, 2, 2), False), ((1, 2, 2), True), ((2, 2, 3), False)]
)
def test_scores_by_stretches_are_those_of_all_frames_at_once(frames, patch, trained):
    predictor = moved_predictor() if trained else None
    frames = -(-frames // patch[0]) * patch[0]
    start = random(2, 16, frames, 6, 12, seed=frames)
    whole = predictor.scores(start) if trained else detail(start, patch)
    assert whole.std() > 0
    assert torch.equal(token_scores(start, predictor, patch), whole)


@pytest.mark.parametrize("trained", [False, True])
def test_scoring_a_longer_clip_takes_no_more_memory(trained):
    predictor, peaks = moved_predictor() if trained else None, []
    for frames in (3 * STRETCH, 9 * STRETCH):
        start = random(1, 16, frames, 16, 24)
        with LiveBytes(start) as live, torch.no_grad():
            scores = token_scores(start, predictor)
        peaks.append(live.peak - start.nbytes - scores.nbytes)
    assert peaks[1] < 1.05 * peaks[0]


def test_a_predictor_scores_as_it_was_trained():
    """Frame by frame, and all of them in one call of the network."""
    predictor, start = moved_predictor(), random(2, 16, 5, 6, 12)
    with torch.no_grad():
        trained = (predictor(start).exp() - 0.3).clamp(min=0)
    torch.testing.assert_close(predictor.scores(start), trained, rtol=1e-4, atol=1e-4)
