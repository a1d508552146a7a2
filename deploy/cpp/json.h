// A small strict JSON reader: as much as text banks and sidecars need.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace ovsdino::edge {

struct Json {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0.0;
  std::string string;
  std::vector<Json> array;
  std::map<std::string, Json> object;

  // The member of an object. Throws std::runtime_error if there is none, or this is not an object.
  const Json& at(const std::string& name) const;
  bool has(const std::string& name) const;

  // The value, if it is of that kind; else std::runtime_error. An integer is a whole number of at most 2^53.
  const std::string& text() const;
  double real() const;
  int64_t integer() const;
  const std::vector<Json>& items() const;
};

// Throws std::runtime_error with the offset of the first byte that is not JSON; a name given twice is refused.
Json parse_json(std::string_view text);

}  // namespace ovsdino::edge
