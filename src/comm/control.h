// Control: how the ranks talk as hosts, never over NCCL and not over MPI either: a TCP star around rank 0 with a thread
// of its own on every rank, so that it works for any launcher and any MPI thread level, and while the main thread is
// inside a kernel or a collective.
//
// Besides the verbs below the thread sends heartbeats. A rank whose connection breaks, that is silent for `timeout_s`,
// or that reports a failure ends the run: every survivor logs "rank 3 on host X died: reason" and exits with code 1.
//
// Verbs are collective: every rank calls the same ones in the same order, from one thread at a time. Calls that do not
// match end the run with both names. Sums are taken in rank order, so every rank gets the same bits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace switchyard {

class ControlChannel;

class Control {
 public:
  // Gives rank 0's address to the others: called once, with it on rank 0 and "" elsewhere; returns it everywhere.
  using ShareAddress = std::function<std::string(const std::string&)>;

  // RunError when the ranks do not all connect. size 1 opens no socket and starts no thread.
  Control(int rank, int size, double timeout_s, const ShareAddress& share_address);
  ~Control();  // waits for the others, unless it unwinds an exception: then that is reported

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Every rank's bytes, by rank.
  std::vector<std::string> all_gather(const std::string& what, const std::string& mine);
  std::string broadcast(const std::string& what, const std::string& bytes, int root);  // `bytes` is read on the root
  void barrier();
  double sum(double value);
  double max(double value);  // NaN on any rank gives NaN
  std::int64_t sum(std::int64_t value);
  std::int64_t max(std::int64_t value);
  std::vector<double> sum(const std::vector<double>& values);  // element by element
  std::vector<std::int64_t> sum(const std::vector<std::int64_t>& values);
  std::vector<std::int64_t> max(const std::vector<std::int64_t>& values);

  // True on every rank when it is on any. Asked once a step it makes all ranks stop at the same step.
  bool any(bool mine);

  // `text` is lines of "key = value" (any text works). Where ranks differ, all of them throw ConfigError with the first
  // key that differs, both values and who holds them. Equal texts cost one exchange of a hash.
  void agree_equal(const std::string& name, const std::string& text);

  // Runs `body` on every rank. A ConfigError on any becomes one on all of them: its message once where all have the
  // same, else each with its ranks. Then, as after agree_equal, the main rank alone logs it.
  void try_together(const std::string& what, const std::function<void()>& body);

  // Tells every rank why this one ends; they log it and exit. The caller exits next (run_guarded does both). Nothing
  // is sent when the ranks already failed together, as in agree_equal.
  void report_failure(const std::string& reason);
  bool failed_together() const { return failed_together_; }

 private:
  template <class T, class Combine>
  std::vector<T> reduce(const char* what, const std::vector<T>& values, Combine combine);

  int rank_, size_;
  bool failed_together_ = false;
  std::unique_ptr<ControlChannel> channel_;  // null in a world of one
};

// What differs among texts of "key = value" lines, one text a rank: "" when they are equal, else one sentence.
std::string describe_difference(const std::string& name, const std::vector<std::string>& text_of_rank);

}  // namespace switchyard
