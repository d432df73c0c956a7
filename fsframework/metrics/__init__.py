"""Quality metrics, one file each; importing this package registers them in `METRICS`."""

from fsframework.metrics.base import METRICS as METRICS
from fsframework.metrics.base import Metric as Metric
from fsframework.metrics.base import aggregate as aggregate
from fsframework.metrics.clip_similarity import ClipSimilarity as ClipSimilarity
from fsframework.metrics.flicker import Flicker as Flicker
from fsframework.metrics.fvd import FVD as FVD
from fsframework.metrics.gmsd import GMSD as GMSD
from fsframework.metrics.haarpsi import HaarPSI as HaarPSI
from fsframework.metrics.lpips import LPIPS as LPIPS
from fsframework.metrics.mdsi import MDSI as MDSI
from fsframework.metrics.ms_ssim import MultiScaleSSIM as MultiScaleSSIM
from fsframework.metrics.prompt_adherence import PromptAdherenceMetric as PromptAdherenceMetric
from fsframework.metrics.psnr import PSNR as PSNR
from fsframework.metrics.ssim import SSIM as SSIM
from fsframework.metrics.statistics import Interval as Interval
from fsframework.metrics.statistics import bootstrap as bootstrap
from fsframework.metrics.statistics import ratio as ratio
from fsframework.metrics.statistics import wilson as wilson
from fsframework.metrics.vmaf import VMAF as VMAF
from fsframework.metrics.vsi import VSI as VSI
