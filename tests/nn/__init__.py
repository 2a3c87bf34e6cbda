"""A package, so that two folders may hold tests of one name."""

import torch

# The networks of these tests are tiny: on busy cores, threads would only wait for one another.
torch.set_num_threads(1)
