#include "boundary.h"

#include <new>
#include <stdexcept>
#include <string>

// Returns the message of the last C function that failed in this thread. In torch 2.12 and older, its address is null.
extern "C" __attribute__((weak, visibility("default"))) const char* torch_exception_get_what_without_backtrace();

namespace fastconv {

void rethrow_in_words() {
  constexpr const char* memory = "fastconv: not enough memory. Use a smaller batch or smaller images.";
  try {
    throw;
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(memory);
  } catch (const std::runtime_error& error) {
    if (std::string(error.what()).find(" API call failed at ") == std::string::npos) throw;
    const char* words = torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : "";
    throw std::runtime_error(*words ? words : memory);
  }
}

}  // namespace fastconv
