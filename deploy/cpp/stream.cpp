// ovsdino_stream: raw frames of a pipe or file in, a line of JSON for each labeled frame out, and its labels as a
// picture. The newest frame is segmented; what is replaced before its turn is dropped, and a result older than the
// deadline is stale, as in `ovsdino stream`.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <thread>

#include "arguments.h"
#include "latest_frame.h"
#include "segmenter.h"

namespace {

using namespace ovsdino::edge;
using Clock = std::chrono::steady_clock;

constexpr const char* kUsage =
    "usage: ovsdino_stream --model FILE --bank FILE --size WxH [options]\n"
    "  --model FILE       exported .onnx or engine; its sidecar FILE.json lies next to it\n"
    "  --bank FILE        text bank written by `ovsdino text`\n"
    "  --size WxH         size of a frame\n"
    "  --format F         of the frames: nv12, by default, or rgb\n"
    "  --input FILE       raw frames one after the other; - is standard input, and the default\n"
    "  --output FOLDER    also write the labels of each frame, FOLDER/00000012.pgm\n"
    "  --deadline-ms MS   age beyond which a result is stale\n"
    "  --source-latency-ms MS  age of a frame when it arrives here; 0 by default\n"
    "  --every-frame on   segment all frames of a file, however long it takes; off by default\n"
    "  --frames N         end after N results\n";

constexpr int kPollMs = 100;  // how often a reader that waits looks whether to stop

volatile std::sig_atomic_t stopped = 0;

void stop(int) { stopped = 1; }

double ms_since(Clock::time_point then, Clock::time_point now) {
  return std::chrono::duration<double, std::milli>(now - then).count();
}

class Input {
 public:
  explicit Input(const std::string& path) : path_(path), file_(path == "-" ? 0 : open(path.c_str(), O_RDONLY)) {
    if (file_ < 0) throw std::runtime_error(path + ": cannot read: " + std::strerror(errno));
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;
  ~Input() {
    if (file_ > 0) close(file_);
  }

  // Fills the frame; false at the end, or when the program is to stop. A part of a frame at the end is left out.
  bool fill(std::vector<uint8_t>& pixels) {
    for (size_t done = 0; done < pixels.size();) {
      pollfd ready{file_, POLLIN, 0};
      const int known = poll(&ready, 1, kPollMs);
      if (stopped != 0) return false;
      if (known == 0 || (known < 0 && errno == EINTR)) continue;
      const ssize_t got = read(file_, pixels.data() + done, pixels.size() - done);
      if (got < 0) throw std::runtime_error(path_ + ": cannot read: " + std::strerror(errno));
      if (got == 0) return left_ = done, false;
      done += static_cast<size_t>(got);
    }
    return true;
  }

  size_t left() const { return left_; }  // bytes of the part at the end

 private:
  const std::string path_;
  const int file_;
  size_t left_ = 0;
};

// Reads until the end, in a thread of its own.
class Reader {
 public:
  Reader(Input& input, LatestFrame& latest, const Image& blank)
      : thread_([this, &input, &latest, blank] {
          try {
            Frame frame;
            for (int64_t sequence = 1;; ++sequence) {
              if (frame.image.pixels.empty()) frame.image = blank;
              if (!input.fill(frame.image.pixels)) break;
              frame.sequence = captured_ = sequence, frame.arrived = Clock::now();
              if (!latest.put(frame)) break;
            }
          } catch (...) {
            error_ = std::current_exception();
          }
          latest.end();
        }) {}
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() {
    stopped = 1;
    if (thread_.joinable()) thread_.join();
  }

  // Returns how many frames came, once no more do. Throws what ended the reading, if it was not the end.
  int64_t join() {
    thread_.join();
    if (error_) std::rethrow_exception(error_);
    return captured_;
  }

 private:
  int64_t captured_ = 0;
  std::exception_ptr error_;
  std::thread thread_;
};

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    char code[8];
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
      out += code;
    } else {
      out += c;
    }
  }
  return out + '"';
}

struct Counts {
  int64_t frames = 0, stale = 0, misses = 0;
};

// One line: number, age, whether it is stale, and the share of each word that is there.
void print_result(const Frame& frame, const Labels& labels, const TextBank& bank, double age_ms, double inference_ms,
                  bool stale, const std::string& file) {
  std::vector<int64_t> pixels(bank.names.size() + 2);
  for (const int32_t label : labels.values) ++pixels[static_cast<size_t>(label)];
  std::printf("{\"frame\": %lld, \"camera_to_mask_ms\": %.3f, \"inference_ms\": %.3f, \"stale\": %s, \"shares\": {",
              static_cast<long long>(frame.sequence), age_ms, inference_ms, stale ? "true" : "false");
  const char* comma = "";
  for (size_t k = 0; k < bank.names.size(); ++k) {
    if (pixels[k] == 0) continue;
    const double share = static_cast<double>(pixels[k]) / static_cast<double>(labels.values.size());
    std::printf("%s%s: %.6f", comma, quoted(bank.names[k]).c_str(), share);
    comma = ", ";
  }
  std::printf("}%s%s}\n", file.empty() ? "" : ", \"labels\": ", file.empty() ? "" : quoted(file).c_str());
  std::fflush(stdout);
}

int run(int count, char** values) {
  const Arguments given(
      count, values, {"--model", "--bank", "--size"},
      {"--format", "--input", "--output", "--deadline-ms", "--source-latency-ms", "--every-frame", "--frames"});
  const auto [width, height] = given.size();
  const Image blank = blank_image(height, width, given.nv12("nv12"));
  const bool timed = given.has("--deadline-ms");
  const double deadline_ms = given.real("--deadline-ms", 0.0, 1e-3, 1e9);
  const double latency_ms = given.real("--source-latency-ms", 0.0, 0.0, 1e9);
  const int64_t most = given.whole("--frames", INT64_MAX, 1, INT64_MAX);
  const bool keep_all = given.on("--every-frame");
  const std::string output = given.text("--output");
  Segmenter segmenter(given.text("--model"), read_bank(given.text("--bank")), given.segmenter_options());
  Input input(given.text("--input", "-"));
  if (!output.empty()) std::filesystem::create_directories(output);

  segmenter.segment(blank);  // warm: no frame grows old meanwhile
  std::signal(SIGINT, stop);
  std::signal(SIGTERM, stop);

  LatestFrame latest(keep_all);
  Reader reader(input, latest, blank);
  Counts counts;
  Frame frame;
  while (stopped == 0 && counts.frames < most && latest.take(frame)) {
    const Clock::time_point begun = Clock::now();
    const Labels labels = segmenter.segment(frame.image);
    const Clock::time_point done = Clock::now();
    const double age_ms = ms_since(frame.arrived, done) + latency_ms, inference_ms = ms_since(begun, done);
    const bool stale = timed && age_ms > deadline_ms;
    ++counts.frames, counts.stale += stale, counts.misses += timed && inference_ms > deadline_ms;
    std::string file;
    if (!output.empty()) {
      char name[32];
      std::snprintf(name, sizeof name, "/%08lld.pgm", static_cast<long long>(frame.sequence));
      file = output + name;
      write_labels(file, labels.values, labels.height, labels.width, segmenter.label_count());
    }
    print_result(frame, labels, segmenter.bank(), age_ms, inference_ms, stale, file);
  }
  const bool interrupted = stopped != 0;
  latest.end();
  if (counts.frames == most) stopped = 1;
  const int64_t captured = reader.join();
  if (counts.frames == 0 && !interrupted) {
    throw std::runtime_error("no whole frame came: " + std::to_string(input.left()) + " bytes of " +
                             std::to_string(blank.pixels.size()));
  }
  std::fprintf(stderr, "frames %lld, captured %lld, dropped %lld, stale %lld, misses %lld%s\n",
               static_cast<long long>(counts.frames), static_cast<long long>(captured),
               static_cast<long long>(latest.dropped()), static_cast<long long>(counts.stale),
               static_cast<long long>(counts.misses),
               input.left() > 0 ? "; a part of a frame at the end was left out" : "");
  return 0;
}

}  // namespace

int main(int count, char** values) { return run_program(count, values, kUsage, run); }
