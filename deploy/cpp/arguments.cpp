#include "arguments.h"

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <thread>

#include "files.h"

namespace ovsdino::edge {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

template <typename T>
T number(const std::string& text, const std::string& option, T least, T most) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= least && value <= most)) {
    fail(option + " is \"" + text + "\": expected a number from " + std::to_string(least) + " to " +
         std::to_string(most));
  }
  return value;
}

}  // namespace

const std::set<std::string> kSegmenterOptions = {"--background",      "--partition", "--least-share",
                                                 "--least-certainty", "--threads",   "--device"};

const char* const kSegmenterHelp =
    "  --background T     pixels less certain than T (0..1) become background\n"
    "  --partition on     every pixel gets a word, even where the bank has contrast rows; off by default\n"
    "  --least-share S    share of the image that a word must cover to be found; 0.001 by default\n"
    "  --least-certainty P  probability against none of the words that it must reach; 0.9 by default\n"
    "  --threads N        of the CPU; by default all\n"
    "  --device N         CUDA device; 0 by default\n";

Arguments::Arguments(int count, char** values, const std::set<std::string>& needed,
                     const std::set<std::string>& optional) {
  for (int i = 1; i < count; i += 2) {
    const std::string name = values[i];
    if (needed.count(name) == 0 && optional.count(name) == 0 && kSegmenterOptions.count(name) == 0) {
      fail("unknown option " + name + "; see --help");
    }
    if (i + 1 == count) fail(name + " needs a value; see --help");
    given_[name] = values[i + 1];
  }
  for (const std::string& name : needed) {
    if (text(name).empty()) fail(name + " is missing; see --help");
  }
}

std::string Arguments::text(const std::string& name, const std::string& otherwise) const {
  return has(name) ? given_.at(name) : otherwise;
}

bool Arguments::on(const std::string& name) const {
  const std::string value = text(name, "off");
  if (value != "on" && value != "off") fail(name + " is \"" + value + "\": expected on or off");
  return value == "on";
}

int64_t Arguments::whole(const std::string& name, int64_t otherwise, int64_t least, int64_t most) const {
  return has(name) ? number<int64_t>(given_.at(name), name, least, most) : otherwise;
}

double Arguments::real(const std::string& name, double otherwise, double least, double most) const {
  return has(name) ? number<double>(given_.at(name), name, least, most) : otherwise;
}

std::pair<int64_t, int64_t> Arguments::size() const {
  if (!has("--size")) return {0, 0};
  const std::string& size = given_.at("--size");
  const size_t cross = size.find('x');
  if (cross == std::string::npos) fail("--size is \"" + size + "\": expected WxH, as in 1920x1080");
  return {number<int64_t>(size.substr(0, cross), "--size", 1, 65536),
          number<int64_t>(size.substr(cross + 1), "--size", 1, 65536)};
}

bool Arguments::nv12(const std::string& otherwise) const {
  const std::string format = text("--format", otherwise);
  if (format != "rgb" && format != "nv12") fail("--format is \"" + format + "\": expected rgb or nv12");
  return format == "nv12";
}

Options Arguments::segmenter_options() const {
  Options options;
  const unsigned processors = std::thread::hardware_concurrency();
  options.threads = static_cast<int>(whole("--threads", processors > 0 ? processors : 1, 1, 1024));
  options.device = static_cast<int>(whole("--device", 0, 0, 255));
  if (has("--background")) {
    const std::string& value = given_.at("--background");
    char* end = nullptr;
    options.background = std::strtof(value.c_str(), &end);
    if (*end != '\0') fail("--background is \"" + value + "\": expected a number from 0 to 1");
  }
  options.partition = on("--partition");
  options.least_share = real("--least-share", 0.001, 0.0, 1.0);
  options.least_certainty = real("--least-certainty", 0.9, 0.0, 1.0);
  return options;
}

int run_program(int count, char** values, const char* usage, int (*run)(int, char**)) {
  if (count == 2 && (std::strcmp(values[1], "--help") == 0 || std::strcmp(values[1], "-h") == 0)) {
    std::printf("%s%s", usage, kSegmenterHelp);
    return 0;
  }
  try {
    return run(count, values);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", one_line(error.what()).c_str());
    return 2;
  }
}

}  // namespace ovsdino::edge
