"""The only room that calls llama.cpp: Model and Context, the guard that serializes them, and the sampler."""

from swarmkv_lab.llama.threads import bound_spinning

bound_spinning()  # before llama.cpp is loaded, and OpenMP's library with it

try:
    import llama_cpp as _  # noqa: F401
except ImportError as error:
    raise ImportError(f"models need llama-cpp-python ({error}): pip install llama-cpp-python") from error
