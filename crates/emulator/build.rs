//! Gives the shared library the name that programs ask the loader for, so that once it is loaded by path a later
//! `dlopen("libcuda.so.1")` finds it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    }
}
