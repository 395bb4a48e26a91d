# ccache and mold where they are installed; both only save time.
find_program(CCACHE ccache)
if(CCACHE)
  # A precompiled header is cached only with this sloppiness. With paths relative to the tree, and no hash of the
  # working directory, a second clone hits what the first one compiled.
  set(launcher ${CMAKE_COMMAND} -E env
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
    CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 CCACHE_COMPILERCHECK=content ${CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()
find_program(MOLD mold)
if(MOLD)
  # CMake 3.25 has no CMAKE_LINKER_TYPE. Without relro, because mold 1.10 lets that segment begin with a thread-local
  # variable on a page that is not mapped, where .text happens to end within its size of a page: "cannot apply additional
  # memory protection after relocation" is then all that the program says.
  add_link_options(-fuse-ld=mold LINKER:-z,norelro)
endif()
