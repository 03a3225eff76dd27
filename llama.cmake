# Read by CMake right after llama.cpp's project(): CMAKE_ARGS="-DCMAKE_PROJECT_llama.cpp_INCLUDE=$PWD/llama.cmake".
# The Python binding needs llama.cpp's library alone. Its build also asks, with FORCE, for what llama.cpp's programs share,
# which is half of the compilation. A plain variable stands before that cached one.
set(LLAMA_BUILD_COMMON OFF)
