#include "comm/stop_signal.h"

#include <csignal>
#include <initializer_list>

namespace switchyard {
namespace {

volatile std::sig_atomic_t stop_received = 0;

// SIGTERM comes again from launchers that are in a hurry; only a second SIGINT is a person who will not wait.
extern "C" void on_stop_signal(int signal) {
  stop_received = 1;
  if (signal == SIGINT) std::signal(SIGINT, SIG_DFL);
}

}  // namespace

void install_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaction(signal, &action, nullptr);
}

bool stop_signal_received() { return stop_received != 0; }
void clear_stop_signal() { stop_received = 0; }

}  // namespace switchyard
