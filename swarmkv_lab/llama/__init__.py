"""The only room that calls llama.cpp: Model and Context, the guard that serializes them, and the sampler."""

try:
    import llama_cpp as _  # noqa: F401
except ImportError as error:
    raise ImportError(f"models need llama-cpp-python ({error}): pip install llama-cpp-python") from error
