//! Enums whose variants are names in the cluster: kinds of objects, types and reasons of conditions.

/// Defines an enum with `ALL`, `as_str` and `Display`. A variant's name is its own, unless another follows a `=`.
macro_rules! named {
    (@name $variant:ident) => {
        stringify!($variant)
    };
    (@name $variant:ident $name:literal) => {
        $name
    };
    (
        $(#[$attribute:meta])*
        pub enum $type:ident {
            $($(#[$documentation:meta])* $variant:ident $(= $name:literal)?,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $type {
            $($(#[$documentation])* $variant,)+
        }

        impl $type {
            /// All of them, in the order of their definition.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name, as the cluster's objects have it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $crate::named::named!(@name $variant $($name)?),)+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

pub(crate) use named;
