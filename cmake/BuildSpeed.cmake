# ccache where it is installed; it only saves time.
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
