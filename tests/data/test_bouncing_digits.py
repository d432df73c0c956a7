import numpy as np
import pytest

from fsframework.data import bouncing_digits as digits


def test_digit_bounces_at_the_border():
    assert digits.bounce(8, 4).tolist() == [8, 9, 8, 7]  # starts near the far border, moving on
    assert digits.bounce(17, 4).tolist() == [1, 0, 1, 2]  # starts at 18 - 17 = 1, moving back
    assert digits.bounce(0).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3]


def test_caption_moves_the_digit_two_pixels_a_frame_along_its_axis_only():
    videos, captions = digits.sample_clips(0, 40)
    assert {"up and down", "left and right"} == {c.split(" moving ")[1] for c in captions}
    for video, caption in zip(videos, captions):
        ink = video[..., 0] > 0.2
        rows = [np.flatnonzero(frame.any(1))[0] for frame in ink]
        columns = [np.flatnonzero(frame.any(0))[0] for frame in ink]
        moving, still = (rows, columns) if "up and down" in caption else (columns, rows)
        assert set(np.abs(np.diff(moving))) == {2}
        assert set(np.diff(still)) == {0}


def test_video_is_white_on_black_and_grey_in_all_channels():
    videos, _ = digits.sample_clips(3, 5)
    assert videos.shape == (5, 16, 32, 32, 3)
    assert videos.dtype == np.float32
    assert videos.min() == 0.0
    assert 0.9 < videos.max() <= 1.0
    assert (videos[..., 0] == videos[..., 1]).all()
    assert (videos > 0).mean() < 14 * 14 / (32 * 32)  # never more than the digit's own square


def test_same_seed_gives_the_same_clips_and_another_seed_others():
    first, first_captions = digits.sample_clips(7, 4)
    again, again_captions = digits.sample_clips(7, 4)
    assert (first == again).all()
    assert first_captions == again_captions
    assert (digits.sample_clips(8, 4)[0] != first).any()


def test_no_image_is_in_both_splits_and_every_digit_has_forty_for_evaluation():
    train, evaluation = digits.digit_images("train"), digits.digit_images("eval")
    assert len(train.images_NHW) + len(evaluation.images_NHW) == 1797
    assert np.bincount(evaluation.labels_N).tolist() == [40] * 10
    assert not {x.tobytes() for x in train.images_NHW} & {x.tobytes() for x in evaluation.images_NHW}


def test_held_out_pairs_are_never_drawn_for_training_but_their_digits_and_motions_are():
    plan = digits.sample_plan(np.random.default_rng(0), 2000)
    seen = set(zip(plan.digits_N.tolist(), [digits.MOTIONS[m] for m in plan.motions_N]))
    assert seen == set(digits.all_pairs()) - set(digits.HELD_OUT_PAIRS)
    assert {digit for digit, _ in seen} == set(range(10))


def test_every_frame_of_a_clip_is_in_the_grid_of_frames():
    plan = digits.sample_plan(np.random.default_rng(1), 3)
    images = digits.digit_images("train").images_NHW[plan.image_index_N]
    grid = digits.grid_frames(images)
    clips = digits.render(images, plan.rows_NT, plan.columns_NT)
    for n in range(3):
        assert (grid[n, plan.rows_NT[n], plan.columns_NT[n]] == clips[n]).all()


def test_caption_is_parsed_back_and_other_text_is_not():
    assert digits.caption(6, "up and down") == "digit 6 is moving up and down"
    assert digits.parse_caption(" Digit 6 is moving left and right ") == (6, "left and right")
    assert digits.parse_caption("digit 12 is moving up and down") is None
    assert digits.parse_caption("a cat") is None
    with pytest.raises(ValueError, match="no caption for digit 6 moving 'sideways'"):
        digits.caption(6, "sideways")
