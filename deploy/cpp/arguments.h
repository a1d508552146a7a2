// The options of a program: pairs of --name and value.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "segmenter.h"

namespace ovsdino::edge {

class Arguments {
 public:
  // Throws std::runtime_error with one line: an unknown option, one without a value, or a needed one that is missing.
  Arguments(int count, char** values, const std::set<std::string>& needed, const std::set<std::string>& optional);

  bool has(const std::string& name) const { return given_.count(name) > 0; }
  std::string text(const std::string& name, const std::string& otherwise = "") const;
  bool on(const std::string& name) const;  // "on", or "off", which is the default
  int64_t whole(const std::string& name, int64_t otherwise, int64_t least, int64_t most) const;
  double real(const std::string& name, double otherwise, double least, double most) const;

  // (width, height) of --size WxH; (0, 0) where it is not given.
  std::pair<int64_t, int64_t> size() const;

  // --format rgb or nv12.
  bool nv12(const std::string& otherwise) const;

  // The options of the segmenter; their names are kSegmenterOptions.
  Options segmenter_options() const;

 private:
  std::map<std::string, std::string> given_;
};

extern const std::set<std::string> kSegmenterOptions;

// Their lines in a program's help.
extern const char* const kSegmenterHelp;

// Prints `usage` and kSegmenterHelp for a lone --help or -h, else runs a program; returns its exit code, 2 after an
// error, which is one line on stderr.
int run_program(int count, char** values, const char* usage, int (*run)(int, char**));

}  // namespace ovsdino::edge
