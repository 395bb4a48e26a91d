# switchyard_data_external: what src/data links to. zlib and zstd only add .gz and .zst input.
add_library(switchyard_data_external INTERFACE)
target_link_libraries(switchyard_data_external INTERFACE sentencepiece sentencepiece_train Threads::Threads)

find_package(ZLIB)
if(ZLIB_FOUND)
  target_link_libraries(switchyard_data_external INTERFACE ZLIB::ZLIB)
  target_compile_definitions(switchyard_data_external INTERFACE SWITCHYARD_WITH_ZLIB)
endif()

find_path(ZSTD_INCLUDE zstd.h)
find_library(ZSTD_LIBRARY zstd)
if(ZSTD_INCLUDE AND ZSTD_LIBRARY)
  target_link_libraries(switchyard_data_external INTERFACE ${ZSTD_LIBRARY})
  target_compile_definitions(switchyard_data_external INTERFACE SWITCHYARD_WITH_ZSTD)
endif()
