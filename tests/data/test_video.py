import numpy as np
import pytest
import torch

from fsframework.data.video import atomic_path, load_frames, read_video, save_frames, to_uint8, write_video


def squares(frames=8, height=32, width=32):
    """A grey square of 12 pixels on black that moves a pixel per frame."""
    video = torch.zeros(frames, height, width, 3)
    for t in range(frames):
        video[t, 8:20, 4 + t : 16 + t] = 0.61
    return video


def test_an_mp4_is_read_back_with_little_loss(tmp_path):
    video = squares()
    write_video(tmp_path / "a.mp4", video)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == (8, 32, 32, 3)
    error = (back / 255.0 - video.numpy()) ** 2
    assert -10 * np.log10(error.mean()) > 35  # dB


def test_the_file_is_h264_with_the_pixel_format_that_browsers_show(tmp_path):
    import av

    write_video(tmp_path / "a.mp4", squares(), fps=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 8


def test_small_clips_are_enlarged_by_a_whole_factor_so_that_pixels_stay_squares(tmp_path):
    write_video(tmp_path / "a.mp4", squares(), min_pixels=128)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == (8, 128, 128, 3)
    small = back[:, 2::4, 2::4] / 255.0
    assert np.abs(small - squares().numpy()).mean() < 0.02


def test_odd_sides_become_even_and_large_clips_keep_their_size(tmp_path):
    write_video(tmp_path / "a.mp4", torch.rand(2, 33, 35, 3), min_pixels=16)
    assert read_video(tmp_path / "a.mp4").shape == (2, 34, 36, 3)


def test_lossless_frames_come_back_bit_for_bit_with_their_facts(tmp_path):
    video = torch.rand(4, 8, 8, 3)
    save_frames(tmp_path / "a.safetensors", video, {"seed": "3"})
    back, facts = load_frames(tmp_path / "a.safetensors")
    assert torch.equal(back, video)
    assert facts == {"seed": "3"}


def test_frames_that_half_precision_holds_exactly_take_half_the_space(tmp_path):
    video = torch.rand(4, 8, 8, 3).half().float()
    save_frames(tmp_path / "a.safetensors", video)
    assert torch.equal(load_frames(tmp_path / "a.safetensors")[0], video)
    assert (tmp_path / "a.safetensors").stat().st_size < video.numel() * 2 + 200


def test_a_damaged_frames_file_says_what_to_do(tmp_path):
    path = tmp_path / "a.safetensors"
    save_frames(path, torch.rand(2, 8, 8, 3))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="delete it"):
        load_frames(path)


def test_nothing_is_left_when_writing_fails(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.mp4") as temporary:
        temporary.write_bytes(b"half a video")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_survives_a_failed_rewrite(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"


def test_floats_are_rounded_to_the_nearest_level_and_clipped():
    video = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.2, 0.999]).reshape(1, 1, 2, 3)
    assert to_uint8(video).ravel().tolist() == [0, 0, 128, 255, 255, 255]


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\)"):
        to_uint8(torch.zeros(2, 3, 8, 8))


def test_reading_what_is_not_a_video_is_a_clear_error(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(ValueError, match="not a video"):
        read_video(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="no such video"):
        read_video(tmp_path / "b.mp4")
