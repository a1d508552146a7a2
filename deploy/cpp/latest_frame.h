// Room for one frame between a thread that reads and one that segments: a newer frame takes the place of the last,
// which then counts as dropped.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <utility>

#include "files.h"

namespace ovsdino::edge {

struct Frame {
  int64_t sequence = 0;  // 1, 2, 3, ...
  std::chrono::steady_clock::time_point arrived;
  Image image;
};

class LatestFrame {
 public:
  // With `keep_all` the reader waits until its frame was taken: for files, not for cameras.
  explicit LatestFrame(bool keep_all) : keep_all_(keep_all) {}

  // Stores a frame and gives the buffers of an older one for the next; false after `end`.
  bool put(Frame& frame) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !keep_all_ || !full_ || ended_; });
    if (ended_) return false;
    dropped_ += full_ ? 1 : 0;
    std::swap(frame_, frame);
    full_ = true;
    changed_.notify_all();
    return true;
  }

  // Waits for a frame and swaps it with `frame`; false where none will come any more.
  bool take(Frame& frame) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return full_ || ended_; });
    if (!full_) return false;
    std::swap(frame_, frame);
    full_ = false;
    changed_.notify_all();
    return true;
  }

  // No more frames come; one that waits can still be taken.
  void end() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

  int64_t dropped() const {
    const std::lock_guard lock(mutex_);
    return dropped_;
  }

 private:
  const bool keep_all_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Frame frame_;
  bool full_ = false, ended_ = false;
  int64_t dropped_ = 0;
};

}  // namespace ovsdino::edge
