# One folder of src/ is one library. Its headers are reachable as "folder/file.h" only for those that name it: each
# library exports an include folder holding nothing but a link to itself, so an arrow against the order of dependency
# does not compile.
add_library(switchyard_flags INTERFACE)
target_compile_options(switchyard_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wno-unknown-pragmas>
  $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)

# The precompiled header of torch, built once and used by every library that asks for TORCH.
add_library(switchyard_torch_pch STATIC ${CMAKE_SOURCE_DIR}/cmake/torch_pch.cpp)
target_link_libraries(switchyard_torch_pch PUBLIC switchyard_flags switchyard_torch_headers)
target_precompile_headers(switchyard_torch_pch PRIVATE ${CMAKE_SOURCE_DIR}/cmake/torch_pch.h)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  target_compile_options(switchyard_torch_pch PUBLIC $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)   # ccache needs it
endif()

function(switchyard_use_torch target)
  target_link_libraries(${target} PUBLIC switchyard_torch)
  target_precompile_headers(${target} REUSE_FROM switchyard_torch_pch)
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
  endif()
endfunction()

# switchyard_library(folder [DEPENDS library…] [EXTERNAL target…] [TORCH] [CUDA])
#   TORCH  the files may include torch;  CUDA  the folder's .cu files and *_cuda.cpp join when WITH_CUDA is on
function(switchyard_library folder)
  cmake_parse_arguments(arg "TORCH;CUDA" "" "DEPENDS;EXTERNAL" ${ARGN})
  string(REPLACE "/" "_" name ${folder})
  set(target switchyard_${name})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${folder}/*.cpp)
  file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${folder}/*.cu ${CMAKE_SOURCE_DIR}/src/${folder}/*_cuda.cpp)
  list(FILTER sources EXCLUDE REGEX "_cuda\\.cpp$")
  if(arg_CUDA AND WITH_CUDA)
    list(APPEND sources ${cuda_sources})
  endif()
  if(NOT sources)
    return()
  endif()
  add_library(${target} STATIC ${sources})

  set(include_root ${CMAKE_BINARY_DIR}/include/${name})
  get_filename_component(parent ${include_root}/${folder} DIRECTORY)
  file(MAKE_DIRECTORY ${parent})
  file(CREATE_LINK ${CMAKE_SOURCE_DIR}/src/${folder} ${include_root}/${folder} SYMBOLIC)
  target_include_directories(${target} PUBLIC ${include_root})
  target_link_libraries(${target} PRIVATE switchyard_flags PUBLIC ${arg_EXTERNAL})
  foreach(dependency ${arg_DEPENDS})
    string(REPLACE "/" "_" dependency ${dependency})
    if(TARGET switchyard_${dependency})
      target_link_libraries(${target} PUBLIC switchyard_${dependency})
    endif()
  endforeach()
  if(arg_TORCH)
    switchyard_use_torch(${target})
  endif()
  if(arg_CUDA AND WITH_CUDA)
    target_compile_definitions(${target} PUBLIC SWITCHYARD_WITH_CUDA)
    target_link_libraries(${target} PUBLIC CUDA::cudart)
    set_target_properties(${target} PROPERTIES CUDA_STANDARD 17)
  endif()
endfunction()

add_custom_target(programs)      # every program, and no test
# switchyard_app(name [LIBRARIES folder…]): src/apps/<name>.cpp, over `train` and all below it unless it names less
# For executables: the header was compiled with -fPIC, and gcc takes it for nothing else.
function(switchyard_reuse_torch_header target)
  target_precompile_headers(${target} REUSE_FROM switchyard_torch_pch)
  target_compile_options(${target} PRIVATE -fPIC)
endfunction()

function(switchyard_app name)
  cmake_parse_arguments(arg "" "" "LIBRARIES" ${ARGN})
  if(NOT arg_LIBRARIES)
    set(arg_LIBRARIES train)
  endif()
  if(NOT EXISTS ${CMAKE_SOURCE_DIR}/src/apps/${name}.cpp)
    return()
  endif()
  add_executable(${name} src/apps/${name}.cpp)
  list(TRANSFORM arg_LIBRARIES PREPEND switchyard_)
  target_link_libraries(${name} PRIVATE switchyard_flags ${arg_LIBRARIES})
  if(switchyard_train IN_LIST arg_LIBRARIES)
    switchyard_reuse_torch_header(${name})
  endif()
  add_dependencies(programs ${name})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endfunction()
