"""What a study will take before anybody books GPUs: parameters, memory, FLOPs, hours, disk.

It is computed from configurations alone, without torch. `zppo plan` prints it.
"""
