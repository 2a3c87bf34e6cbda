"""Networks and the estimator, on tensors alone; they import torch, timm and our errors, but no slides."""
