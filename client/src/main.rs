//! `subrosa`: seal a prompt and read the answer, check who would open it, seal and open files, render key policies.

mod commands;

use std::process::ExitCode;

fn main() -> ExitCode {
    commands::run()
}
