// Log lines for people. Messages are built with format(); spdlog writes them (its headers stay in log.cpp, because
// torch ships another fmt). Levels: SWITCHYARD_LOG=debug|info|warn|error, info by default.
#pragma once

#include <string>

namespace switchyard::log {

void debug(const std::string& message);
void info(const std::string& message);
void warn(const std::string& message);
void error(const std::string& message);

// Ranks other than 0 keep warnings and errors only, each marked with its rank.
void set_rank(int rank, int world_size);
// Every line goes to this file too, with date and time; appended to, created if missing.
void also_to_file(const std::string& path);

}  // namespace switchyard::log
