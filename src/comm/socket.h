// Stream sockets with deadlines, as little as the control channel needs. IPv4 and IPv6.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace switchyard {

using Clock = std::chrono::steady_clock;

// Owns a file descriptor, non-blocking, closed on exec.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { close(); }
  Socket(Socket&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Socket& operator=(Socket&& other) noexcept;
  int fd() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  void close();

 private:
  int fd_ = -1;
};

// Listens on every interface, on a port the system chooses. RunError.
Socket listen_anywhere(int* port);
// The next connection, or a closed Socket at the deadline.
Socket accept_until(const Socket& listener, Clock::time_point deadline);
// Connects to a name or a numeric address; a closed Socket when that fails by the deadline.
Socket connect_until(const std::string& address, int port, Clock::time_point deadline);

// Waits until the socket can be read (or written); false at the deadline.
bool wait_readable(const Socket& socket, Clock::time_point deadline);
bool wait_writable(const Socket& socket, Clock::time_point deadline);

enum class Transfer { kOk, kClosed };
// Appends what has arrived to `buffer`; sends from the front of `buffer` what the system takes. Neither blocks.
Transfer receive_available(const Socket& socket, std::string& buffer);
Transfer send_available(const Socket& socket, std::string& buffer);

// Numeric addresses of this host's interfaces, without loopback.
std::vector<std::string> own_addresses();
std::string host_name();
// Host name and kernel: tells apart machines of one name, and containers of one machine.
std::string machine_id();
// 32 hexadecimal digits from the system's random source.
std::string random_token();

}  // namespace switchyard
