"""The looking child: `python -m worker.torch_look` prints what torch can compute on, as JSON.

Loading torch takes seconds and some hundred megabytes, which the process that checks is spared.
"""

import json
import sys
import warnings


def look() -> dict[str, object]:
    """Versions, the devices there are, and why CUDA is none of them if torch was built for it."""
    import torch  # noqa: PLC0415 - a torch that cannot be loaded is one of the answers

    devices, names, problem = ["cpu"], {}, ""
    if torch.backends.mps.is_available():
        devices.append("mps")
    if torch.version.cuda is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                torch.cuda.init()  # type: ignore[no-untyped-call]
            except (RuntimeError, AssertionError) as error:
                problem = str(error).splitlines()[0]
            else:
                devices.append("cuda")
                free, total = torch.cuda.mem_get_info()
                names = {"name": torch.cuda.get_device_name(), "free": free, "total": total}
    return {
        "torch": torch.__version__,
        "cuda_build": torch.version.cuda,
        "devices": devices,
        "gpu": names,
        "problem": problem,
    }


def main() -> int:
    """Prints the answer, or {"error"} where torch cannot be loaded."""
    try:
        answer = look()
    except (ImportError, OSError, AttributeError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
