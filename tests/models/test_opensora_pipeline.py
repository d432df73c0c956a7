"""Open-Sora 1.2's pipeline: prompts, sizes, guidance, given frames, files; random weights, 17 frames of 16 x 16 pixels."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import load_oracle

import fsframework as fsf
from fsframework.core import LoadedModel, Part
from fsframework.models import OpenSora
from fsframework.models.opensora_1_2 import (
    OpenSoraPipeline,
    RFlowScheduler,
    STDiT3,
    num_frames_of,
    size_of,
)
from fsframework.models.opensora_1_2.caption import add_scores, clean
from fsframework.policies import StaticReuse

SHORT, LONG = "digit 6", "digit 3 is moving left and right"
SMALL = dict(height=16, width=16, num_frames=17, num_inference_steps=3, guidance_scale=4.0, output_type="latent")


def random_pipeline():
    spec = importlib.util.spec_from_file_location("pipes_opensora", Path(__file__).parent / "pipes" / "opensora.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build()


@pytest.fixture(scope="module")
def pipe():
    return random_pipeline()


def run(pipe, prompt=LONG, seed=0, **more):
    return pipe(prompt, **{**SMALL, "generator": torch.Generator().manual_seed(seed), **more}).frames


def publish(pipe, folder):
    """The pipeline's parts as Open-Sora publishes them, each in a folder."""
    pipe.tokenizer.save_pretrained(folder / "t5")
    pipe.text_encoder.save_pretrained(folder / "t5")
    for name, kind in (("transformer", "STDiT3"), ("vae", "VideoAutoencoderPipeline")):
        part = getattr(pipe, name)
        part.save_pretrained(folder / name)
        (folder / name / "diffusion_pytorch_model.safetensors").rename(folder / name / "model.safetensors")
        config = {k: v for k, v in part.config.items() if k[0] != "_"} | {"model_type": kind, "auto_map": {}}
        (folder / name / "config.json").write_text(json.dumps(config))
    return {name: folder / name for name in ("t5", "transformer", "vae")}


class TestPrompts:
    def test_two_prompts_of_unequal_lengths_in_one_call_are_as_each_alone(self, pipe):
        noise = torch.randn(2, 4, 5, 8, 8, generator=torch.Generator().manual_seed(1))
        together = run(pipe, [SHORT, LONG], latents=noise)
        for row, prompt in enumerate((SHORT, LONG)):
            alone = run(pipe, prompt, latents=noise[row : row + 1])
            assert torch.allclose(together[row], alone[0], atol=1e-4)
        assert not torch.allclose(together[0], run(pipe, LONG, latents=noise[:1])[0], atol=1e-2)

    def test_several_videos_of_a_prompt_follow_one_another(self, pipe):
        noise = torch.randn(4, 4, 5, 8, 8, generator=torch.Generator().manual_seed(1))
        four = run(pipe, [SHORT, LONG], latents=noise, num_videos_per_prompt=2)
        assert torch.allclose(four[1:2], run(pipe, SHORT, latents=noise[1:2]), atol=1e-4)
        assert torch.allclose(four[2:3], run(pipe, LONG, latents=noise[2:3]), atol=1e-4)

    def test_states_of_ones_own_replace_the_prompt(self, pipe):
        states = torch.randn(1, 6, 16)
        padded = torch.cat([states, torch.full((1, 4, 16), 9.0)], dim=1)
        mask = torch.tensor([[1] * 6 + [0] * 4])
        expected = run(pipe, None, prompt_embeds=states)
        assert torch.equal(run(pipe, None, prompt_embeds=padded, prompt_attention_mask=mask), expected)
        with pytest.raises(ValueError, match="either prompt or prompt_embeds"):
            run(pipe, LONG, prompt_embeds=states)
        with pytest.raises(ValueError, match="a prompt has 13 tokens, but this transformer's captions have at most 12"):
            run(pipe, None, prompt_embeds=torch.randn(1, 13, 16))

    def test_states_may_be_made_beforehand(self, pipe):
        states, mask = pipe.encode_prompt([SHORT, LONG])
        assert states.shape == (2, 12, 16)
        assert mask.sum(1).tolist() == [2, 7]
        together = run(pipe, None, prompt_embeds=states, prompt_attention_mask=mask)
        assert torch.equal(together, run(pipe, [SHORT, LONG]))

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (
                [[1, 1, 1, 0], [0, 0, 1, 1]],
                "row 1 of prompt_attention_mask must be ones .* has 2 ones, and 0 at token 0",
            ),
            ([[1, 0, 1, 0], [1, 1, 1, 1]], "row 0 of prompt_attention_mask .* has 2 ones, and 0 at token 1"),
            ([[1, 1, 1, 1], [0, 0, 0, 0]], "row 1 of prompt_attention_mask must be ones for text, at least one"),
            ([[1.0, 0.5, 0.0, 0.0], [1.0] * 4], "row 0 of prompt_attention_mask .* has 1 ones, and 0.5 at token 1"),
            ([[1, 1, 1, 0]], r"has shape \(1, 4\), but prompt_embeds have \(2, 4, 16\); .* each token, \(2, 4\)"),
            ([[1, 1, 1, 0]] * 3, r"has shape \(3, 4\), but prompt_embeds have \(2, 4, 16\)"),
            ([[1, 1, 1]] * 2, r"has shape \(2, 3\), but prompt_embeds have \(2, 4, 16\)"),
            ([1, 1, 1, 0], r"has shape \(4,\), but prompt_embeds have \(2, 4, 16\)"),
        ],
    )
    def test_a_mask_that_is_not_text_and_then_padding_for_each_prompt_is_refused(self, pipe, mask, message):
        with pytest.raises(ValueError, match=message):
            run(pipe, None, prompt_embeds=torch.randn(2, 4, 16), prompt_attention_mask=torch.tensor(mask))

    def test_a_mask_may_be_bool(self, pipe):
        states, mask = pipe.encode_prompt([SHORT, LONG])
        expected = run(pipe, None, prompt_embeds=states, prompt_attention_mask=mask)
        assert torch.equal(run(pipe, None, prompt_embeds=states, prompt_attention_mask=mask.bool()), expected)

    def test_no_prompts_at_all_are_refused(self, pipe):
        with pytest.raises(ValueError, match="prompt is an empty list, so there is no video to make"):
            run(pipe, [])
        with pytest.raises(ValueError, match="prompt is an empty list"):
            pipe.encode_prompt([])
        for shape in ((0, 6, 16), (1, 0, 16), (6, 16)):
            with pytest.raises(ValueError, match=r"prompt_embeds have shape .*; needed is \[prompts"):
                run(pipe, None, prompt_embeds=torch.zeros(shape))

    def test_an_empty_prompt_is_one_token(self, pipe):
        assert run(pipe, "").isfinite().all()

    def test_scores_are_appended_unless_the_prompt_has_them(self):
        assert add_scores("A cat.", 6.5) == "A cat. aesthetic score: 6.5."
        assert add_scores("A cat.", 7, 5, "pan right") == (
            "A cat. aesthetic score: 7.0. motion score: 5.0. camera motion: pan right."
        )
        assert add_scores("A cat. motion score: 3.0.", None, 5) == "A cat. motion score: 3.0."
        assert add_scores("A cat.") == "A cat."

    def test_a_call_may_say_another_score_than_the_pipeline_or_none(self, pipe, monkeypatch):
        seen = []

        def encode(tokenizer, text_encoder, prompts, length, device):
            seen.extend(prompts)
            return torch.zeros(1, 2, 16), torch.ones(1, 2)

        monkeypatch.setattr("fsframework.models.opensora_1_2.text.encode", encode)
        published = OpenSoraPipeline(**pipe.components, aesthetic_score=6.5, clean_caption=False)
        published.set_progress_bar_config(disable=True)
        for score in (None, 5.0, 0):
            run(published, "A Cat.", aesthetic_score=score)
        assert seen == ["a cat. aesthetic score: 6.5.", "a cat. aesthetic score: 5.0.", "a cat."]

    def test_cleaning_without_its_packages_says_what_to_install(self, pipe, monkeypatch):
        monkeypatch.setattr("fsframework.models.opensora_1_2.caption.cleaning_lacks", lambda: ["ftfy"])
        with pytest.warns(UserWarning, match=r"because ftfy can not be imported. Install with pip install"):
            run(pipe, clean_caption=True)
        with pytest.raises(ImportError, match="cleaning captions needs ftfy"):
            clean("x")

    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [
            ("A  <b>Cat</b> at https://example.com/a/b runs", "a cat at runs"),
            ("a “quoted” word — and 猫 @nick", "'a \"quoted\" word - and'"),
            ("a &amp; b, image_01.jpg (new)", "a b, new"),
        ],
    )
    def test_cleaning(self, prompt, expected):
        pytest.importorskip("ftfy")
        pytest.importorskip("bs4")
        assert clean(prompt) == expected.strip("'")


class TestSampling:
    @pytest.mark.parametrize("which", ["plain", "mask_ones", "mask_ref"])
    def test_the_pipelines_loop_reproduces_thirty_steps_of_the_original(self, pipe, which):
        oracle = load_oracle("stdit3_oracle.pt")
        recorded = oracle["rflow"]
        model = STDiT3.from_config(oracle["config"]).eval()
        model.load_state_dict(oracle["state_dict"])
        vae = pipe.vae
        vae_factor, vae.spatial_factor = vae.spatial_factor, 8
        vae.latent_size = lambda num_frames, height, width: (5, 6, 8)
        own = OpenSoraPipeline(None, None, vae, model, RFlowScheduler())
        own.set_progress_bar_config(disable=True)
        weights = {"plain": None, "mask_ones": torch.ones(5), "mask_ref": recorded["frame_mask_ref"]}[which]
        final = own(
            height=240, width=426, num_frames=17, latents=recorded["z"], prompt_embeds=recorded["y"][:, 0],
            prompt_attention_mask=recorded["mask"], frame_weights=weights, output_type="latent",
            generator=torch.Generator().manual_seed(recorded["mask_ref_torch_seed"]),
        ).frames  # fmt: skip
        del vae.latent_size
        vae.spatial_factor = vae_factor
        assert (final - recorded[f"final_{which}"]).abs().max() < 1e-4

    def test_without_guidance_only_the_conditional_half_is_run(self, pipe):
        batches = []
        hook = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: batches.append(kwargs["x"].shape[0]), with_kwargs=True
        )
        run(pipe, guidance_scale=1.0)
        assert not pipe.do_classifier_free_guidance
        run(pipe, guidance_scale=2.0)
        assert pipe.do_classifier_free_guidance
        hook.remove()
        assert batches == [1, 1, 1, 2, 2, 2]

    def test_the_same_seed_gives_the_same_video_and_a_batch_may_have_one_generator_each(self, pipe):
        assert torch.equal(run(pipe), run(pipe))
        assert not torch.equal(run(pipe), run(pipe, seed=1))
        each = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        both = run(pipe, [LONG, LONG], generator=each)
        assert torch.allclose(both, torch.cat([run(pipe), run(pipe, seed=1)]), atol=1e-5)

    @pytest.mark.parametrize(("count", "more"), [(1, {}), (3, {}), (2, dict(num_videos_per_prompt=2)), (0, {})])
    def test_another_number_of_generators_than_of_videos_is_refused(self, pipe, count, more):
        each = [torch.Generator().manual_seed(seed) for seed in range(count)]
        batch = 2 * more.get("num_videos_per_prompt", 1)
        with pytest.raises(ValueError, match=f"generator is a list of {count}, but this call makes {batch} videos"):
            run(pipe, [SHORT, LONG], generator=each, **more)

    @pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
    def test_frames_come_as_asked_for_and_in_zero_to_one(self, pipe, output_type):
        frames = run(pipe, output_type=output_type)
        if output_type == "pt":
            assert frames.shape == (1, 17, 3, 16, 16)
            assert 0 <= frames.min() <= frames.max() <= 1
        elif output_type == "np":
            assert frames.shape == (1, 17, 16, 16, 3)
            assert isinstance(frames, np.ndarray)
        else:
            assert (len(frames[0]), frames[0][0].size) == (17, (16, 16))

    def test_a_single_frame_is_told_120_frames_per_second(self, pipe):
        seen = []
        hook = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["fps"].tolist()), with_kwargs=True
        )
        for more in (dict(num_frames=1), {}, dict(fps=8)):
            run(pipe, num_inference_steps=1, **more)
        hook.remove()
        assert seen == [[120, 120], [24, 24], [8, 8]]

    def test_a_callback_sees_every_step_may_change_latents_and_may_stop(self, pipe):
        seen = []

        def callback(pipe, step, t, tensors):
            seen.append((step, float(t)))
            pipe._interrupt = step == 1
            return {"latents": torch.zeros_like(tensors["latents"])}

        assert run(pipe, callback_on_step_end=callback).abs().max() == 0
        assert [step for step, _ in seen] == [0, 1]
        assert seen[0][1] == pytest.approx(1000)
        with pytest.raises(ValueError, match=r"asked for \['x'\]"):
            run(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["x"])

    def test_a_callback_may_change_the_length_of_states_only_where_no_mask_has_it(self, pipe):
        def shorten(pipe, step, t, tensors):
            return {"prompt_embeds": tensors["prompt_embeds"][:, :2]}

        arguments = dict(callback_on_step_end=shorten, callback_on_step_end_tensor_inputs=["prompt_embeds"])
        assert run(pipe, LONG, **arguments).isfinite().all()
        message = r"callback_on_step_end returned prompt_embeds of shape \(2, 2, 16\).*mask is for \(2, 7\)"
        with pytest.raises(ValueError, match=message):
            run(pipe, [SHORT, LONG], **arguments)

    def test_times_of_ones_own_replace_the_number_of_steps(self, pipe):
        seen = []
        run(pipe, timesteps=[1000, 500], callback_on_step_end=lambda pipe, step, t, tensors: seen.append(float(t)))
        assert seen == [1000, 500]
        with pytest.raises(ValueError, match="give a list of at least one time"):
            run(pipe, timesteps=[])

    def test_sizes_are_rounded_as_the_release_does_only_if_the_sampler_says_so(self, pipe):
        seen = []
        hook = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(float(kwargs["width"][0])), with_kwargs=True
        )
        for dtype in ("float32", "bfloat16"):
            pipe.scheduler = RFlowScheduler(size_dtype=dtype)
            run(pipe, width=854, height=8, num_inference_steps=1)
        hook.remove()
        pipe.scheduler = RFlowScheduler()
        assert seen == [854, 856]


class TestGivenFrames:
    def test_a_given_picture_stays_and_the_rest_follows_it(self, pipe):
        picture = torch.rand(1, 3, 16, 16)
        given = pipe.vae.encode(picture[:, :, None] * 2 - 1, torch.Generator().manual_seed(0))
        latents = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(5))
        before = latents.clone()
        out = run(pipe, reference_video=picture[None], latents=latents)
        assert torch.allclose(out[:, :, :1], given, atol=1e-5)
        assert torch.equal(latents, before)
        assert not torch.allclose(out[:, :, 1:], run(pipe, latents=latents)[:, :, 1:], atol=1e-3)

    def test_a_reference_may_be_pictures_of_another_size(self, pipe):
        from PIL import Image

        out = run(pipe, reference_video=[Image.new("RGB", (32, 32), (200, 10, 10))] * 17, frame_weights=[0.0] * 5)
        assert out.isfinite().all()
        kept = run(pipe, reference_video=torch.rand(17, 3, 16, 16), frame_weights=[0.0] * 5, output_type="pt")
        assert kept.shape == (1, 17, 3, 16, 16)

    @pytest.mark.parametrize("one_each", [False, True])
    def test_with_a_generator_each_a_video_in_a_batch_is_what_it_is_alone(self, pipe, one_each):
        video = torch.rand(2 if one_each else 1, 17, 3, 16, 16, generator=torch.Generator().manual_seed(3))
        weights = [0.0, 0.5, 1.0, 1.0, 1.0]
        each = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        both = run(pipe, [SHORT, LONG], generator=each, reference_video=video, frame_weights=weights)
        for row, prompt in enumerate((SHORT, LONG)):
            own = video[row : row + 1] if one_each else video
            alone = run(pipe, prompt, seed=row, reference_video=own, frame_weights=weights)
            assert torch.allclose(both[row], alone[0], atol=1e-4)

    def test_weights_of_one_change_nothing(self, pipe):
        noise = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(5))
        free = run(pipe, latents=noise)
        assert torch.allclose(run(pipe, latents=noise, frame_weights=[1.0] * 5), free, atol=1e-5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (dict(frame_weights=[1.0, 0.0]), r"frame_weights have shape \(2,\); needed is \[5\] or \[1, 5\]"),
            (dict(frame_weights=[2.0] * 5), "must be 0 to 1"),
            (dict(reference_video=torch.rand(1, 1, 3, 16, 16), reference_start=5), "starts at 5, but the video has 5"),
            (dict(reference_video=torch.rand(2, 1, 3, 16, 16)), "has a batch of 2, but this call makes 1 videos"),
            (
                dict(prompt=[SHORT, LONG], num_videos_per_prompt=2, reference_video=torch.rand(2, 1, 3, 16, 16)),
                "has a batch of 2, but this call makes 4 videos",
            ),
        ],
    )
    def test_frames_that_do_not_fit(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message):
            run(pipe, **arguments)


class TestSizes:
    def test_names(self):
        assert size_of("480p", "9:16") == (480, 854)
        assert size_of("720p", "1:1") == (960, 960)
        assert [num_frames_of(n) for n in ("2s", "4x", "16s", 17)] == [51, 204, 408, 17]

    def test_a_number_of_frames_may_be_any_kind_of_whole_number(self):
        assert num_frames_of(np.int64(17)) == 17

    def test_the_names_are_those_of_the_recorded_tables(self):
        for name, table in load_oracle("rflow_tables.json").items():
            resolution, ratio = name.split()[:2]
            assert size_of(resolution, ratio) == (table["h"], table["w"])

    def test_a_call_takes_names_and_its_default_is_240p(self, pipe, monkeypatch):
        seen = []
        monkeypatch.setattr(RFlowScheduler, "set_timesteps", lambda self, *args, **kwargs: seen.append(kwargs) or 1 / 0)
        sizes = dict(height=None, width=None, num_frames=None, latents=None)
        for more in ({}, dict(resolution="144p", aspect_ratio="1:1", num_frames="4s")):
            with pytest.raises(ZeroDivisionError):
                run(pipe, **{**sizes, **more})
        assert [(s["height"], s["width"], s["num_frames"]) for s in seen] == [(240, 426, 51), (192, 192, 102)]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (dict(num_frames=16), "can not make 16 frames: a video is 1 frame or at least 17"),
            (dict(num_frames="3s"), "unknown length '3s'"),
            (dict(num_frames=17.0), "num_frames=17.0 is a float; give a whole number of frames such as 51"),
            (dict(num_frames=[17]), r"num_frames=\[17\] is a list; give a whole number"),
            (dict(height=None, width=None, resolution="720"), r"unknown resolution '720'.*Did you mean '720p'\?"),
            (dict(height=None, width=None, resolution="720p", aspect_ratio="2:1"), "height to width"),
            (dict(width=None), "give height and width, or resolution"),
            (dict(resolution="240p"), "give height and width, or resolution"),
            (dict(height=2), "must both be at least 4"),
            (dict(latents=torch.zeros(1, 4, 5, 2, 2)), r"latents have shape \(1, 4, 5, 2, 2\); this call's are"),
        ],
    )
    def test_sizes_that_can_not_be(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message):
            run(pipe, **arguments)


class TestFiles:
    def test_a_saved_pipeline_is_the_same_when_loaded_and_names_its_classes_package(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["_class_name"] == "OpenSoraPipeline"
        assert index["transformer"] == ["fsframework.models.opensora_1_2", "STDiT3"]
        assert (index["aesthetic_score"], index["clean_caption"]) == (None, False)
        for loaded in (OpenSoraPipeline.from_pretrained(tmp_path), fsf.load_model(str(tmp_path)).pipe):
            loaded.set_progress_bar_config(disable=True)
            assert torch.equal(run(loaded), run(pipe))

    def test_the_published_parts_are_put_together(self, pipe, tmp_path):
        parts = publish(pipe, tmp_path)
        where = dict(vae=str(parts["vae"]), text_encoder=str(parts["t5"]), clean_caption=False)
        loaded = OpenSoraPipeline.from_pretrained(str(parts["transformer"]), aesthetic_score=None, **where)
        loaded.set_progress_bar_config(disable=True)
        assert torch.allclose(run(loaded), run(pipe))
        bare = OpenSoraPipeline.from_pretrained(
            parts["transformer"], text_encoder=None, vae=pipe.vae, torch_dtype=torch.bfloat16
        )
        assert (bare.text_encoder, bare.tokenizer, bare.transformer.dtype) == (None, None, torch.bfloat16)
        with pytest.raises(ValueError, match="this pipeline has no text encoder; give prompt_embeds"):
            run(bare)
        with pytest.raises(ValueError, match="does not take colour"):
            OpenSoraPipeline.from_pretrained(str(parts["transformer"]), colour="red", **where)

    @pytest.mark.filterwarnings("ignore:prompts are not cleaned")
    def test_the_registered_name_stands_for_the_three_published_repositories(self, pipe, tmp_path, monkeypatch):
        import transformers

        parts = publish(pipe, tmp_path)
        home = {
            "hpcai-tech/OpenSora-STDiT-v3": parts["transformer"], "hpcai-tech/OpenSora-VAE-v1.2": parts["vae"],
            "DeepFloyd/t5-v1_1-xxl": parts["t5"],
        }  # fmt: skip
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, **options: str(home[repo] / name))
        for cls in (transformers.T5EncoderModel, transformers.AutoTokenizer):
            original = cls.from_pretrained
            monkeypatch.setattr(cls, "from_pretrained", lambda name, original=original, **o: original(home[name], **o))
        model = fsf.load_model("opensora-1.2")
        assert model.pipe.config.aesthetic_score == 6.5
        assert model.generate(LONG, seed=0, num_steps=2, height=16, width=16, num_frames=17).shape == (17, 16, 16, 3)

    def test_bfloat16_weights_give_a_video_near_float32(self, pipe):
        narrow = random_pipeline().to(torch.bfloat16)
        states = torch.randn(1, 6, 16)
        wide, out = (run(p, None, prompt_embeds=states, num_inference_steps=8) for p in (pipe, narrow))
        assert out.dtype == torch.float32
        assert 0 < (out - wide).square().mean().sqrt() < 0.1 * wide.std()
        assert run(narrow, output_type="pt").isfinite().all()


class TestReuse:
    def test_through_the_frameworks_own_calls(self, pipe):
        model = LoadedModel("random", OpenSora(), pipe, OpenSora.checkpoints["opensora-1.2"], "random")
        sizes = dict(num_steps=4, height=16, width=16, num_frames=17)
        bare = model.generate(LONG, seed=0, **sizes)
        assert bare.shape == (17, 16, 16, 3)
        with fsf.reuse(pipe, StaticReuse(warmup=1)) as session:
            assert not torch.equal(model.generate(LONG, seed=0, **sizes), bare)
        assert session.trace.decisions("spatial.0") == session.trace.decisions("temporal.1") == "CRCR"
        assert [site.name for site in session.sites] == ["spatial.0", "temporal.0", "spatial.1", "temporal.1"]
        assert torch.equal(model.generate(LONG, seed=0, **sizes), bare)

    def test_offloading_changes_nothing(self):
        pipe = random_pipeline()
        bare = run(pipe, output_type="pt")
        pipe.enable_model_cpu_offload(device="cpu")
        with fsf.reuse(pipe, StaticReuse(interval=1)) as session:
            for _ in range(2):
                assert torch.equal(run(pipe, output_type="pt"), bare)
        assert len(session.trace) == 3 * 4

    @torch.no_grad()
    @pytest.mark.parametrize("axis", ["spatial", "temporal"])
    @pytest.mark.parametrize("per_frame", [False, True])
    def test_a_part_that_returns_one_over_its_gate_adds_one(self, pipe, axis, per_frame):
        block = getattr(pipe.transformer, f"{axis}_blocks")[0]
        tokens = torch.randn(2, 12, 16)
        arguments = dict(
            hidden_states=tokens, encoder_hidden_states=torch.randn(2, 5, 16),
            modulation=torch.randn(2, 3 if per_frame else 1, 6, 16), num_frames=3,
        )  # fmt: skip
        parts = {Part.ATTENTION: block.attn, Part.CROSS_ATTENTION: block.cross_attn, Part.MLP: block.mlp}
        for part in parts:
            hooks = []
            for other, module in parts.items():
                gate = OpenSora().gate(part, block, arguments)[0] if other is part else None
                fixed = 0.0 if other is not part else 1.0 if gate is None else 1 / gate
                hooks.append(
                    module.register_forward_hook(lambda m, args, out, fixed=fixed: torch.zeros_like(out) + fixed)
                )
            assert torch.allclose(block(**arguments), tokens + 1, atol=1e-4)
            for hook in hooks:
                hook.remove()
