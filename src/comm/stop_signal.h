// SIGTERM, SIGINT and SIGUSR1 ask for a stop: the run saves and exits 0 at the next step. mpirun forwards SIGUSR1 to
// its ranks, while on SIGTERM it gives them a second before it kills them. A second SIGINT ends the process at once.
#pragma once

namespace switchyard {

void install_stop_signals();
bool stop_signal_received();  // on this process; Control::any makes it common
void clear_stop_signal();

}  // namespace switchyard
