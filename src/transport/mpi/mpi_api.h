// The only inclusion of <mpi.h>: without the removed C++ bindings, which would need a library of
// their own at run time.
#pragma once

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#ifdef OPEN_MPI
#include <mpi-ext.h>
#endif
