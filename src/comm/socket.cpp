#include "comm/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <utility>

#include "base/error.h"
#include "base/text.h"

namespace switchyard {
namespace {

constexpr int kSocketFlags = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;

bool wait_for(const Socket& socket, short events, Clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd entry{socket.fd(), events, 0};
    const int ready = ::poll(&entry, 1, static_cast<int>(std::max<long long>(0, left)));
    if (ready > 0) return true;
    if (ready == 0 && left <= 0) return false;
    if (ready < 0 && errno != EINTR) return false;
  }
}

// Small messages that somebody waits for: no delay by Nagle's algorithm.
void send_at_once(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

// An IPv6 socket that takes IPv4 too, or IPv4 alone where the system has no IPv6.
Socket bind_anywhere() {
  Socket six(::socket(AF_INET6, kSocketFlags, 0));
  if (six.is_open()) {
    const int off = 0;
    ::setsockopt(six.fd(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    any.sin6_addr = in6addr_any;
    if (::bind(six.fd(), reinterpret_cast<sockaddr*>(&any), sizeof any) == 0) return six;
  }
  Socket four(::socket(AF_INET, kSocketFlags, 0));
  sockaddr_in any{};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = INADDR_ANY;
  if (!four.is_open() || ::bind(four.fd(), reinterpret_cast<sockaddr*>(&any), sizeof any) != 0) {
    throw RunError(format("cannot open a port for the ranks to meet: %s", std::strerror(errno)));
  }
  return four;
}

Socket connect_to(const addrinfo& target, Clock::time_point deadline) {
  Socket socket(::socket(target.ai_family, kSocketFlags, 0));
  if (!socket.is_open()) return Socket();
  if (::connect(socket.fd(), target.ai_addr, target.ai_addrlen) != 0) {
    if (errno != EINPROGRESS || !wait_writable(socket, deadline)) return Socket();
    int error = 0;
    socklen_t size = sizeof error;
    if (::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) return Socket();
  }
  send_at_once(socket.fd());
  return socket;
}

}  // namespace

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void Socket::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Socket listen_anywhere(int* port) {
  Socket socket = bind_anywhere();
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (::listen(socket.fd(), SOMAXCONN) != 0 ||
      ::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    throw RunError(format("cannot open a port for the ranks to meet: %s", std::strerror(errno)));
  }
  *port = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                            : reinterpret_cast<sockaddr_in&>(bound).sin_port);
  return socket;
}

Socket accept_until(const Socket& listener, Clock::time_point deadline) {
  while (wait_readable(listener, deadline)) {
    Socket accepted(::accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!accepted.is_open()) continue;  // the other side gave up in the meantime
    send_at_once(accepted.fd());
    return accepted;
  }
  return Socket();
}

Socket connect_until(const std::string& address, int port, Clock::time_point deadline) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return Socket();
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  for (const addrinfo* target = found; target; target = target->ai_next) {
    Socket socket = connect_to(*target, deadline);
    if (socket.is_open()) return socket;
  }
  return Socket();
}

bool wait_readable(const Socket& socket, Clock::time_point deadline) { return wait_for(socket, POLLIN, deadline); }
bool wait_writable(const Socket& socket, Clock::time_point deadline) { return wait_for(socket, POLLOUT, deadline); }

Transfer receive_available(const Socket& socket, std::string& buffer) {
  char chunk[65536];
  for (;;) {
    const ssize_t got = ::recv(socket.fd(), chunk, sizeof chunk, 0);
    if (got > 0) {
      buffer.append(chunk, static_cast<std::size_t>(got));
    } else if (got == 0) {
      return Transfer::kClosed;
    } else if (errno != EINTR) {
      return errno == EAGAIN || errno == EWOULDBLOCK ? Transfer::kOk : Transfer::kClosed;
    }
  }
}

Transfer send_available(const Socket& socket, std::string& buffer) {
  std::size_t sent = 0;
  Transfer result = Transfer::kOk;
  while (sent < buffer.size()) {
    const ssize_t taken = ::send(socket.fd(), buffer.data() + sent, buffer.size() - sent, MSG_NOSIGNAL);
    if (taken > 0) {
      sent += static_cast<std::size_t>(taken);
    } else if (errno != EINTR) {
      if (errno != EAGAIN && errno != EWOULDBLOCK) result = Transfer::kClosed;
      break;
    }
  }
  buffer.erase(0, sent);
  return result;
}

std::vector<std::string> own_addresses() {
  std::vector<std::string> addresses;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return addresses;
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(list, &::freeifaddrs);
  for (const ifaddrs* entry = list; entry; entry = entry->ifa_next) {
    if (!entry->ifa_addr || (entry->ifa_flags & IFF_LOOPBACK) || !(entry->ifa_flags & IFF_UP)) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    char text[NI_MAXHOST];
    const socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    if (::getnameinfo(entry->ifa_addr, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0) continue;
    if (!std::strchr(text, '%')) addresses.emplace_back(text);  // a link-local address means nothing elsewhere
  }
  return addresses;
}

std::string host_name() {
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  return *name ? name : "localhost";
}

std::string machine_id() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  return host_name() + "/" + boot;
}

std::string random_token() {
  std::random_device random;
  std::string token;
  for (int i = 0; i < 4; ++i) token += format("%08x", random());
  return token;
}

}  // namespace switchyard
