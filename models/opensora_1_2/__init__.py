"""Open-Sora 1.2 (arXiv:2412.20404) for diffusers: transformer, sampler, video VAE and pipeline."""

from diffusers import ModelMixin as ModelMixin  # diffusers, loading a pipeline, looks for its bases beside our classes
from diffusers import SchedulerMixin as SchedulerMixin

from fsframework.models.opensora_1_2.frame_mask import FrameMask as FrameMask
from fsframework.models.opensora_1_2.pipeline import OpenSoraPipeline as OpenSoraPipeline
from fsframework.models.opensora_1_2.pipeline import OpenSoraPipelineOutput as OpenSoraPipelineOutput
from fsframework.models.opensora_1_2.scheduler import RFlowScheduler as RFlowScheduler
from fsframework.models.opensora_1_2.sizes import num_frames_of as num_frames_of
from fsframework.models.opensora_1_2.sizes import size_of as size_of
from fsframework.models.opensora_1_2.transformer import STDiT3 as STDiT3
from fsframework.models.opensora_1_2.vae import OpenSoraVAE as OpenSoraVAE

for _class in (OpenSoraPipeline, RFlowScheduler, STDiT3, OpenSoraVAE):
    _class.__module__ = __name__  # a saved pipeline names where to find its classes: this package, not one of its files
