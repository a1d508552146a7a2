// ovsdino_segment: an exported model, a text bank and an image in, a picture of labels out.
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>

#include "segmenter.h"
#include "stopwatch.h"

namespace {

using ovsdino::edge::Image;
using ovsdino::edge::Labels;

constexpr const char* kUsage =
    "usage: ovsdino_segment --model FILE --bank FILE --image FILE --output FILE [options]\n"
    "  --model FILE       exported .onnx or engine; its sidecar FILE.json lies next to it\n"
    "  --bank FILE        text bank written by `ovsdino text`\n"
    "  --image FILE       binary PPM; with --size, (H, W, 3) bytes of RGB\n"
    "  --output FILE      labels as a binary PGM: the index of the name, K for background\n"
    "  --size WxH         size of a raw image\n"
    "  --background T     pixels less certain than T (0..1) become background\n"
    "  --partition on     every pixel gets a word, even where the bank has contrast rows; off by default\n"
    "  --least-share S    share of the image that a word must cover to be found; 0.001 by default\n"
    "  --least-certainty P  probability against none of the words that it must reach; 0.9 by default\n"
    "  --threads N        of the CPU; by default all\n"
    "  --device N         CUDA device; 0 by default\n"
    "  --repeat N         segment N times, the times are those of the last; 1 by default\n";

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

std::map<std::string, std::string> parse(int count, char** values) {
  std::map<std::string, std::string> given = {{"--model", ""}, {"--bank", ""}, {"--image", ""}, {"--output", ""}};
  const std::map<std::string, int> optional = {{"--size", 0},        {"--background", 0},     {"--threads", 0},
                                               {"--device", 0},      {"--repeat", 0},         {"--partition", 0},
                                               {"--least-share", 0}, {"--least-certainty", 0}};
  for (int i = 1; i < count; i += 2) {
    const std::string name = values[i];
    if (given.count(name) == 0 && optional.count(name) == 0) fail("unknown option " + name + "; see --help");
    if (i + 1 == count) fail(name + " needs a value; see --help");
    given[name] = values[i + 1];
  }
  for (const auto& [name, value] : given) {
    if (value.empty()) fail(name + " is missing; see --help");
  }
  return given;
}

Image read(const std::map<std::string, std::string>& given) {
  int64_t height = 0, width = 0;
  if (given.count("--size") > 0) {
    const std::string& size = given.at("--size");
    const size_t cross = size.find('x');
    if (cross == std::string::npos) fail("--size is \"" + size + "\": expected WxH, as in 1920x1080");
    width = number<int64_t>(size.substr(0, cross), "--size", 1, 65536);
    height = number<int64_t>(size.substr(cross + 1), "--size", 1, 65536);
  }
  return ovsdino::edge::read_image(given.at("--image"), height, width);
}

int run(int count, char** values) {
  const std::map<std::string, std::string> given = parse(count, values);
  const auto text = [&](const std::string& name, const char* otherwise) {
    return given.count(name) > 0 ? given.at(name) : std::string(otherwise);
  };
  ovsdino::edge::Options options;
  const unsigned processors = std::thread::hardware_concurrency();
  options.threads =
      number<int>(text("--threads", std::to_string(processors > 0 ? processors : 1).c_str()), "--threads", 1, 1024);
  options.device = number<int>(text("--device", "0"), "--device", 0, 255);
  if (given.count("--background") > 0) {
    char* end = nullptr;
    options.background = std::strtof(given.at("--background").c_str(), &end);
    if (*end != '\0') fail("--background is \"" + given.at("--background") + "\": expected a number from 0 to 1");
  }
  const std::string partition = text("--partition", "off");
  if (partition != "on" && partition != "off") fail("--partition is \"" + partition + "\": expected on or off");
  options.partition = partition == "on";
  options.least_share = number<double>(text("--least-share", "0.001"), "--least-share", 0.0, 1.0);
  options.least_certainty = number<double>(text("--least-certainty", "0.9"), "--least-certainty", 0.0, 1.0);
  const int repeat = number<int>(text("--repeat", "1"), "--repeat", 1, 1000000);

  ovsdino::edge::TextBank bank = ovsdino::edge::read_bank(given.at("--bank"));
  ovsdino::edge::Segmenter segmenter(given.at("--model"), std::move(bank), options);
  const bool unlabeled = options.background || segmenter.competes();
  const int64_t values_of_labels = segmenter.bank().classes() + (unlabeled ? 1 : 0);
  ovsdino::edge::Stopwatch watch;
  const Image image = read(given);
  const double load = watch.lap();
  Labels labels;
  for (int i = 0; i < repeat; ++i) labels = segmenter.segment(image);
  ovsdino::edge::write_labels(given.at("--output"), labels.values, labels.height, labels.width, values_of_labels);

  std::printf("%s: %lld x %lld\nload %.2f ms\n", given.at("--output").c_str(), static_cast<long long>(labels.width),
              static_cast<long long>(labels.height), load);
  for (const auto& [stage, ms] : labels.stages_ms) std::printf("%s %.2f ms\n", stage.c_str(), ms);
  if (segmenter.competes()) {
    std::vector<bool> found(static_cast<size_t>(values_of_labels));
    for (const int32_t label : labels.values) found[static_cast<size_t>(label)] = true;
    for (size_t k = 0; k < segmenter.bank().names.size(); ++k) {
      if (!found[k]) std::printf("not found: %s\n", segmenter.bank().names[k].c_str());
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** values) {
  if (count == 2 && (std::strcmp(values[1], "--help") == 0 || std::strcmp(values[1], "-h") == 0)) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    return run(count, values);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", ovsdino::edge::one_line(error.what()).c_str());
    return 2;
  }
}
