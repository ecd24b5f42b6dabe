"""The backend of the learners' process group."""


def process_group_backend(device_type: str) -> str:
    """For `torch.distributed.init_process_group`: gloo on CPUs, and NCCL with gloo beside it on GPUs.

    What stays on the CPU there, as offloaded parameters and gradients do, is reduced and gathered by gloo.
    """
    return "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
