#include <exception>

#include "comm/check.h"
#include "comm/rendezvous.h"

namespace switchyard {
namespace {

// From here on MPI is called by one thread at a time: by this one until the collectives start their thread, and again
// after that has ended. Overlap needs MPI_THREAD_SERIALIZED; make_host_collectives asks what there is.
class MpiRendezvous : public Rendezvous {
 public:
  explicit MpiRendezvous(const Launch& launch) {
    int initialized = 0, provided = 0;
    SWITCHYARD_MPI_CHECK(MPI_Initialized(&initialized));
    if (!initialized) SWITCHYARD_MPI_CHECK(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided));
    owns_mpi_ = !initialized;
    SWITCHYARD_MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    SWITCHYARD_MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &rank_));
    SWITCHYARD_MPI_CHECK(MPI_Comm_size(MPI_COMM_WORLD, &size_));
    if (size_ != launch.size) {
      throw ConfigError(
          format("the launcher started %d processes, but MPI sees %d; use the mpirun of the MPI this program "
                 "was built with, or srun --mpi=pmix",
                 launch.size, size_));
    }
  }

  ~MpiRendezvous() override {
    if (owns_mpi_ && std::uncaught_exceptions() == 0) MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::string share(const std::string& text) override {
    int bytes = static_cast<int>(text.size());
    SWITCHYARD_MPI_CHECK(MPI_Bcast(&bytes, 1, MPI_INT, 0, MPI_COMM_WORLD));
    std::string shared = text;
    shared.resize(bytes);
    SWITCHYARD_MPI_CHECK(MPI_Bcast(shared.data(), bytes, MPI_CHAR, 0, MPI_COMM_WORLD));
    return shared;
  }

 private:
  int rank_ = 0, size_ = 1;
  bool owns_mpi_ = false;
};

}  // namespace

std::unique_ptr<Rendezvous> make_mpi_rendezvous(const Launch& launch) {
  return std::make_unique<MpiRendezvous>(launch);
}

}  // namespace switchyard
