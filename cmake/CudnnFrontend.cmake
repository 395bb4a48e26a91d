# switchyard_cudnn: cuDNN of torch's package set, and the headers of its frontend (PyPI: nvidia-cudnn-frontend), for
# ops/cudnn_attention*. A build without them has everything, with attention on GPUs by torch's kernels.
#   SWITCHYARD_CUDNN_FRONTEND   folder of cudnn_frontend.h; empty: looked for in torch's environment; OFF: not used
set(SWITCHYARD_CUDNN_FRONTEND "" CACHE STRING "Folder of cudnn_frontend.h; empty: torch's environment; OFF: without")
set(cudnn ${site_packages}/nvidia/cudnn)
set(nvrtc ${site_packages}/nvidia/cu13/lib)
set(frontend_needed 1.32)
set(frontend "")
get_filename_component(environment "${site_packages}/../../.." ABSOLUTE)
if(SWITCHYARD_CUDNN_FRONTEND)
  get_filename_component(folders "${SWITCHYARD_CUDNN_FRONTEND}" ABSOLUTE BASE_DIR ${CMAKE_SOURCE_DIR})
  if(NOT EXISTS ${folders}/cudnn_frontend.h)
    message(FATAL_ERROR "SWITCHYARD_CUDNN_FRONTEND=${SWITCHYARD_CUDNN_FRONTEND} holds no cudnn_frontend.h; give the "
                        "folder that does, or OFF")
  endif()
else()
  set(folders ${site_packages}/include ${environment}/include)
endif()

set(why "the headers of nvidia-cudnn-frontend are not in ${site_packages}/include; pip install --no-deps nvidia-cudnn-frontend")
if(NOT SWITCHYARD_CUDNN_FRONTEND STREQUAL "" AND NOT SWITCHYARD_CUDNN_FRONTEND)
  set(why "SWITCHYARD_CUDNN_FRONTEND is ${SWITCHYARD_CUDNN_FRONTEND}")
elseif(NOT EXISTS ${cudnn}/include/cudnn.h OR NOT EXISTS ${cudnn}/lib/libcudnn.so.9 OR NOT EXISTS ${nvrtc}/libnvrtc.so.13)
  set(why "${cudnn}/include/cudnn.h, ${cudnn}/lib/libcudnn.so.9 or ${nvrtc}/libnvrtc.so.13 is missing")
else()
  foreach(folder ${folders})
    if(EXISTS ${folder}/cudnn_frontend_version.h AND NOT frontend)
      file(STRINGS ${folder}/cudnn_frontend_version.h lines REGEX "define CUDNN_FRONTEND_M(AJOR|INOR)_VERSION")
      string(REGEX REPLACE "[^0-9;]" "" version "${lines}")
      string(REPLACE ";" "." version "${version}")
      if(version VERSION_LESS frontend_needed AND SWITCHYARD_CUDNN_FRONTEND)
        message(FATAL_ERROR "SWITCHYARD_CUDNN_FRONTEND=${SWITCHYARD_CUDNN_FRONTEND} holds cudnn_frontend ${version}; "
                            "give one of ${frontend_needed} or later, or OFF")
      elseif(version VERSION_LESS frontend_needed)
        set(why "${folder} holds cudnn_frontend ${version}, and ${frontend_needed} or later is needed")
      else()
        set(frontend ${folder})
      endif()
    endif()
  endforeach()
endif()

if(frontend)
  message(STATUS "Attention on GPUs: cuDNN through its frontend ${version} in ${frontend}")
  add_library(cudnn SHARED IMPORTED GLOBAL)
  set_target_properties(cudnn PROPERTIES IMPORTED_LOCATION ${cudnn}/lib/libcudnn.so.9)
  add_library(switchyard_cudnn INTERFACE)
  # NVRTC is named by a norm of the frontend's that nothing here uses. As a path, CMake would see two folders that both
  # hold the CUDA runtime, torch's and the toolkit's, and warn for every program.
  target_link_libraries(switchyard_cudnn INTERFACE cudnn -L${nvrtc} -l:libnvrtc.so.13)
  target_include_directories(switchyard_cudnn SYSTEM INTERFACE ${frontend} ${cudnn}/include)
  # Its JSON and its log of every call are left out: they are most of the time that it takes to compile.
  target_compile_definitions(switchyard_cudnn INTERFACE SWITCHYARD_CUDNN_ATTENTION CUDNN_FRONTEND_SKIP_JSON_LIB
    NV_CUDNN_FRONTEND_DISABLE_LOGGING)
  list(APPEND CMAKE_BUILD_RPATH ${cudnn}/lib)
else()
  message(STATUS "Attention on GPUs: torch's kernels (${why})")
endif()
