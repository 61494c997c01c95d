"""One thread for every test that does not ask for more."""

import torch

# Tiny tensors: a second thread costs more than it brings, tenfold when the machine is busy.
torch.set_num_threads(1)
