#include <cstdlib>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "base/error.h"
#include "base/text.h"
#include "comm/rendezvous.h"

namespace switchyard {
namespace {

bool is_agents_store() {
  const char* text = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
  return text && std::string(text) == "True";
}

// A restarted run finds the store of the one before under torchrun.
std::string address_key() {
  const char* restart = std::getenv("TORCHELASTIC_RESTART_COUNT");
  return std::string("switchyard/address/") + (restart ? restart : "0");
}

class StoreRendezvous : public Rendezvous {
 public:
  explicit StoreRendezvous(const Launch& launch) : launch_(launch) {
    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(launch.master_port);
    options.isServer = launch.rank == 0 && !is_agents_store();
    options.waitWorkers = false;
    options.timeout = std::chrono::seconds(60);
    try {
      store_ = std::make_unique<c10d::TCPStore>(launch.master_address, options);
    } catch (const std::exception& error) { fail(error); }
  }

  int rank() const override { return launch_.rank; }
  int size() const override { return launch_.size; }

  std::string share(const std::string& text) override {
    try {
      if (launch_.rank == 0) {
        store_->set(address_key(), std::vector<std::uint8_t>(text.begin(), text.end()));
        return text;
      }
      const std::vector<std::uint8_t> bytes = store_->get(address_key());
      return std::string(bytes.begin(), bytes.end());
    } catch (const std::exception& error) { fail(error); }
  }

 private:
  [[noreturn]] void fail(const std::exception& error) const {
    throw RunError(format("rank %d cannot meet the others at MASTER_ADDR:MASTER_PORT = %s:%d: %s", launch_.rank,
                          launch_.master_address.c_str(), launch_.master_port, error.what()));
  }

  Launch launch_;
  std::unique_ptr<c10d::TCPStore> store_;
};

}  // namespace

std::unique_ptr<Rendezvous> make_store_rendezvous(const Launch& launch) {
  return std::make_unique<StoreRendezvous>(launch);
}

}  // namespace switchyard
