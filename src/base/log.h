// Log lines for people. Messages are built with format(); spdlog writes them (its headers stay in log.cpp, because
// torch ships another fmt). Levels: SWITCHYARD_LOG=debug|info|warn|error, info by default.
#pragma once

#include <string>

namespace switchyard::log {

void debug(const std::string& message);
void info(const std::string& message);
void warn(const std::string& message);
void error(const std::string& message);

// A line that the next one of any kind takes the place of: how far a run is. Drawn only on a terminal, and only
// alone().
void status(const std::string& text);
void erase_status();

// Ranks other than 0 keep warnings and errors only, each marked with its rank. Several ranks write plain lines: what
// they write goes through a pipe, although mpirun gives each of them a terminal.
void set_rank(int rank, int world_size);
bool alone();  // not one of several ranks

}  // namespace switchyard::log
