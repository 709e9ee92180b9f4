//! The `hookbridge` command: arguments in, exit code out.

use std::process::ExitCode;

/// Fewer and cheaper trips to the operating system than the default allocator makes, for the many small
/// strings of a message's headers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hookbridge::cli::main()
}
