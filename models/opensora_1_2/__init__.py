"""Open-Sora 1.2 (arXiv:2412.20404) for diffusers: transformer, sampler, video VAE and pipeline."""

from fsframework.models.opensora_1_2.frame_mask import FrameMask as FrameMask
from fsframework.models.opensora_1_2.scheduler import RFlowScheduler as RFlowScheduler
from fsframework.models.opensora_1_2.transformer import STDiT3 as STDiT3
from fsframework.models.opensora_1_2.vae import OpenSoraVAE as OpenSoraVAE
