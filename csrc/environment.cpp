#include "environment.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string_view>

#include "cpu/capability.h"

namespace fastconv {
namespace {

// Returns the value without the spaces around it. Empty if the variable is not set.
std::string_view value_of(const char* name) {
  const char* variable = std::getenv(name);
  std::string_view value = variable == nullptr ? "" : variable;
  constexpr std::string_view spaces = " \t\r\n";
  value.remove_prefix(std::min(value.find_first_not_of(spaces), value.size()));
  value.remove_suffix(value.size() - (value.find_last_not_of(spaces) + 1));
  return value;
}

// Returns the value for an error message: on one line, in ASCII, at most 60 characters of it.
std::string printable(std::string_view value) {
  constexpr size_t most = 60;
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const char c : value.substr(0, most)) {
    const auto code = static_cast<unsigned char>(c);
    if (code >= 0x20 && code < 0x7f) {
      text += c;
    } else {
      text += {'\\', 'x', digits[code >> 4], digits[code & 15]};
    }
  }
  return value.size() > most ? text + "..." : text;
}

[[noreturn]] void refuse(const char* name, std::string_view value, const std::string& expected) {
  throw std::invalid_argument(std::string("fastconv: ") + name + ": '" + printable(value) + "' " + expected);
}

std::string cpu_capability_from(const char* name) {
  const std::string_view value = value_of(name);
  if (value.empty()) return "";
  std::string have;
  for (const std::string& level : cpu_capabilities()) {
    if (value == level) return level;
    have += (have.empty() ? "" : ", ") + level;
  }
  refuse(name, value, "is not an ISA level of this machine: " + have + " (empty or unset: the last)");
}

// `expected`: the end of the message about any other value.
bool is_on(const char* name, std::string_view off, std::string_view on, const std::string& expected) {
  const std::string_view value = value_of(name);
  if (value.empty() || value == off) return false;
  if (value == on) return true;
  refuse(name, value, expected);
}

int winograd_from(const char* name) {
  const std::string_view value = value_of(name);
  if (value.empty()) return 3;
  if (value.size() == 1 && std::string_view("0234").find(value) != std::string_view::npos) return value[0] - '0';
  refuse(name, value, "is not one of 0, 2, 3, 4 (largest side of Winograd's tiles; 0: no Winograd; empty or unset: 3)");
}

// Returns the bytes of a number of megabytes. `zero`: what 0 means, for the error message.
int64_t bytes_from(const char* name, int64_t usual, const char* zero) {
  const std::string_view value = value_of(name);
  if (value.empty()) return usual << 20;
  constexpr int64_t unlimited = std::numeric_limits<int64_t>::max(), most = unlimited >> 20;
  int64_t megabytes = 0;
  for (const char c : value) {
    if (c < '0' || c > '9') {
      refuse(name, value,
             std::string("is not a whole number of MB, 0 or more (") + zero +
                 "; empty or unset: " + std::to_string(usual) + ")");
    }
    megabytes = std::min(megabytes * 10 + (c - '0'), most + 1);
  }
  return megabytes > most ? unlimited : megabytes << 20;
}

}  // namespace

bool has_malloc_settings() {
  for (const char* name : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  const char* tunables = std::getenv("GLIBC_TUNABLES");
  return tunables != nullptr && std::string_view(tunables).find("glibc.malloc.") != std::string_view::npos;
}

const Environment& environment() {
  static const Environment parsed{
      cpu_capability_from("FASTCONV_CPU_CAPABILITY"),
      is_on("FASTCONV_ALGORITHM", "auto", "own",
            "is not one of auto, own (own: fastconv's kernels only; empty or unset: auto)"),
      winograd_from("FASTCONV_WINOGRAD"),
      bytes_from("FASTCONV_CACHE_MB", 512, "0 turns the cache off"),
      bytes_from("FASTCONV_KEEP_MB", 1024, "0: as the C library does"),
      is_on("FASTCONV_TENSOR_CORES", "0", "1",
            "is not one of 0, 1 (1: convolutions on a GPU use the new kernels; empty or unset: 0)"),
  };
  return parsed;
}

}  // namespace fastconv
