# What is installed, and the Debian package of it:
#
#   cmake --build --preset release && cpack --config build/release/CPackConfig.cmake
include(GNUInstallDirs)

install(TARGETS stagecoach RUNTIME DESTINATION bin)
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
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
# Without Open MPI everything works but jobs of several hosts.
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS openmpi-bin)
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA "${PROJECT_SOURCE_DIR}/launcher/postinst;${PROJECT_SOURCE_DIR}/launcher/prerm")
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
include(CPack)
