//! The `hookbridge` command: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    hookbridge::cli::main()
}
