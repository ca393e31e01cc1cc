//! The `tandem` program: everything it does lives in the library.

fn main() -> std::process::ExitCode {
    tandem::cli::run(std::env::args_os())
}
