# What is installed, and the Debian packages of it: stagecoach, and where the CUDA Toolkit is stagecoach-cuda.
#
#   cmake --build --preset release && cpack --config build/release/CPackConfig.cmake
include(GNUInstallDirs)
set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME main)

install(TARGETS stagecoach RUNTIME DESTINATION bin)
if(TARGET stagecoach_cuda)
  install(TARGETS stagecoach_cuda LIBRARY DESTINATION lib/stagecoach COMPONENT cuda)
endif()
if(TARGET stagecoach_mpi)
  install(TARGETS stagecoach_mpi LIBRARY DESTINATION lib/stagecoach)
endif()
install(FILES ${PROJECT_SOURCE_DIR}/launcher/stagecoach-agent.service DESTINATION lib/systemd/system)
install(FILES ${PROJECT_SOURCE_DIR}/README.md DESTINATION share/doc/stagecoach)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION share/doc/stagecoach RENAME copyright)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/docs/ DESTINATION share/doc/stagecoach FILES_MATCHING PATTERN "*.md"
        PATTERN PLAN.md EXCLUDE)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/configs/jobs ${PROJECT_SOURCE_DIR}/configs/clusters ${PROJECT_SOURCE_DIR}/configs/slurm
        DESTINATION share/doc/stagecoach/examples)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME stagecoach)
set(CPACK_PACKAGE_CONTACT "The Stagecoach developers <stagecoach@localhost>")
set(CPACK_PACKAGE_DIRECTORY ${CMAKE_BINARY_DIR})
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_COMPONENTS_ALL main)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_MAIN_PACKAGE_NAME stagecoach)
set(CPACK_DEBIAN_MAIN_PACKAGE_SHLIBDEPS ON)
# Without Open MPI everything works but jobs of several hosts.
set(CPACK_DEBIAN_MAIN_PACKAGE_RECOMMENDS openmpi-bin)
set(CPACK_DEBIAN_MAIN_PACKAGE_CONTROL_EXTRA "${PROJECT_SOURCE_DIR}/launcher/postinst;${PROJECT_SOURCE_DIR}/launcher/prerm")
set(CPACK_DEBIAN_MAIN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
# The driver and cuBLAS come from NVIDIA, as packages of its own or without any: none is required. Without them the
# module cannot be opened, and the CPU computes.
if(TARGET stagecoach_cuda)
  list(APPEND CPACK_COMPONENTS_ALL cuda)
  set(CPACK_DEBIAN_CUDA_PACKAGE_NAME stagecoach-cuda)
  set(CPACK_DEBIAN_CUDA_PACKAGE_SHLIBDEPS OFF)
  set(CPACK_DEBIAN_CUDA_PACKAGE_DEPENDS "stagecoach (= ${PROJECT_VERSION})")
  set(CPACK_DEBIAN_CUDA_PACKAGE_SUGGESTS "libcublas-${CUDAToolkit_VERSION_MAJOR}-${CUDAToolkit_VERSION_MINOR}")
  set(CPACK_COMPONENT_CUDA_DESCRIPTION "The CUDA module of Stagecoach: computes on NVIDIA GPUs of compute capability 7.5 and up.")
endif()
include(CPack)
