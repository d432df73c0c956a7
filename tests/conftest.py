import torch

# The models are tiny: a second thread costs more in waiting than it computes, the more so on a busy machine.
torch.set_num_threads(1)
