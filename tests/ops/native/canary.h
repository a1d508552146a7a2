// Bugs planted on purpose, armed by a compile flag of canary.cpp alone: a check that passes with one of them is blind.
#pragma once

#include <cstdint>

namespace check {

int64_t planted_short_read();  // elements by which every buffer is too short: kernels read past its end
int64_t planted_overflow();    // passes a shipped header's index function a number that it cannot hold
double planted_error();        // added to a result before it is compared

}  // namespace check
