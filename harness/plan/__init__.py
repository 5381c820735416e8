"""What a study will take before anybody books GPUs: parameters, memory, FLOPs, hours, disk. From configurations alone;
imports no torch. `zppo plan` prints it."""
