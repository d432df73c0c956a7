import numpy as np
import pytest
import torch

from fsframework.data import bouncing_digits as digits
from fsframework.metrics.adherence import PromptAdherence, centroid_track, is_digits_prompt, mass_windows, motion_of


def test_real_clips_of_unseen_digits_adhere_to_their_captions():
    videos, captions = digits.sample_clips(11, 100, "eval", digits.all_pairs())
    judge = PromptAdherence()
    results = [judge.score(video, caption) for video, caption in zip(videos, captions)]
    assert np.mean([r.digit for r in results]) >= 0.95
    assert all(r.motion for r in results)
    assert np.mean([r.both for r in results]) >= 0.95


def test_real_clip_fails_the_caption_of_another_digit_and_of_the_other_motion():
    videos, _ = digits.sample_clips(2, 1, pairs=[(6, "up and down")])
    judge = PromptAdherence()
    right = judge.score(videos[0], "digit 6 is moving up and down")
    assert (right.digit, right.motion, right.both) == (True, True, True)
    wrong_digit = judge.score(videos[0], "digit 3 is moving up and down")
    assert (wrong_digit.digit, wrong_digit.motion, wrong_digit.both) == (False, True, False)
    wrong_motion = judge.score(torch.from_numpy(videos[0]), "digit 6 is moving left and right")
    assert (wrong_motion.digit, wrong_motion.motion, wrong_motion.both) == (True, False, False)


def test_still_digit_shows_no_motion():
    videos, _ = digits.sample_clips(2, 1, pairs=[(6, "up and down")])
    still = np.repeat(videos[0][:1], 16, axis=0)
    assert not PromptAdherence().score(still, "digit 6 is moving up and down").motion


def test_motion_is_the_axis_with_nine_tenths_of_the_variance_and_more_than_two_pixels():
    steps = np.arange(16.0)
    assert motion_of(np.stack([steps, 0 * steps], 1)) == "up and down"
    assert motion_of(np.stack([steps / 4, steps], 1)) == "left and right"  # variance 1/16 : 1, ratio 0.94
    assert motion_of(np.stack([steps / 2, steps], 1)) is None  # 1/4 : 1, ratio 0.8
    assert motion_of(np.stack([0 * steps, steps / 8], 1)) is None  # 15 / 8 < 2 pixels


def test_centroid_of_one_bright_pixel_is_its_place_and_a_black_frame_repeats_it():
    frames = np.zeros((3, 32, 32))
    frames[0, 5, 9] = 1.0
    frames[2, 7, 9] = 0.5
    assert centroid_track(frames).tolist() == [[5, 9], [5, 9], [7, 9]]


def test_window_of_a_digit_does_not_depend_on_where_the_digit_is():
    image = digits.digit_images("train").images_NHW[:1]
    places = digits.render(image, np.array([[0, 4, 9]]), np.array([[0, 7, 9]]))[0, ..., 0]
    crops = mass_windows(places)
    assert crops.shape == (3, 14, 14)
    assert np.array_equal(crops[0], crops[1])
    assert np.array_equal(crops[0], crops[2])


def test_other_prompts_and_wrong_videos_are_refused_with_a_reason():
    video = np.zeros((16, 32, 32, 3))
    assert is_digits_prompt("digit 0 is moving left and right")
    assert not is_digits_prompt("a cat playing the piano")
    with pytest.raises(ValueError, match=r"captions of the bouncing digits only.*'a cat'"):
        PromptAdherence().score(video, "a cat")
    with pytest.raises(ValueError, match=r"shape is \(16, 3, 32, 32\)"):
        PromptAdherence().score(video.transpose(0, 3, 1, 2), "digit 0 is moving left and right")
    with pytest.raises(ValueError, match="Divide 8-bit frames by 255"):
        PromptAdherence().score(video + 255, "digit 0 is moving left and right")
